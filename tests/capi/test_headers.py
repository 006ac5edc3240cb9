"""The headers in every language that they are for, with all warnings as errors."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.capi.installed import Installed, run

STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror", "-fsyntax-only"]
# Included twice, and both in one file, as happens in larger programs.
C_PROGRAM = """
#include <kvcache.h>
#include <kvcache.h>
int main(void) {
    kvc_config config = kvc_config_init();
    kvc_cache *cache = NULL;
    const kvc_status status = kvc_open("{}", &cache);
    kvc_close(cache);
    return status == KVC_OK && config.struct_size > 0 && sizeof(kvc_status) == 4;
}
"""
CPP_PROGRAM = """
#include <kvcache.hpp>
#include <kvcache.h>
#include <kvcache.hpp>
#include <array>
#include <type_traits>

static_assert(!std::is_copy_constructible<kvcache::cache>::value, "a cache has one owner");
static_assert(std::is_nothrow_move_constructible<kvcache::cache>::value, "");

int main() {
    auto opened = kvcache::cache::open("{}");
    kvcache::cache cache = std::move(opened).value();
    std::array<std::int32_t, 32> tokens{};
    std::array<std::uint8_t, 64> data{};
    auto keys = cache.hash_tokens(tokens.data(), tokens.size(), 16, {"salt", 4}).value();
    auto stored = cache.put(keys, data.data(), data.size());
    auto loaded = cache.get({keys[0], keys.size()}, data.data(), data.size());
#if __cplusplus >= 202002L
    keys = cache.hash_tokens(tokens, 16).value();
    stored = cache.put(keys, std::span(data));
    loaded = cache.get(std::span<const std::uint8_t>(keys.data(), 16), std::span(data));
#endif
    auto leased = cache.lease(keys).value();
    auto filled = cache.reserve(keys).value().commit();
    const std::vector<kvc_segment> pieces{{data.data(), 32}, {data.data() + 32, 32}};
    auto scattered = cache.put({keys[0], 1}, pieces);
    auto ended = cache.ended();
    auto text = cache.stats_prometheus("one");
    const bool in_place = filled && scattered && leased.size() == 0;
    return opened.ok() && stored && loaded && in_place && cache.clear() && ended && text;
}
"""


def compilers(*names: str) -> list[str]:
    return [name for name in names if shutil.which(name)]


@pytest.mark.parametrize("standard", ["c99", "c11", "c17"])
@pytest.mark.parametrize("compiler", compilers("gcc", "clang"))
def test_c(installed: Installed, tmp_path: Path, compiler: str, standard: str) -> None:
    program = tmp_path / "program.c"
    program.write_text(C_PROGRAM)
    run([compiler, f"-std={standard}", *STRICT, f"-I{installed.include}", str(program)])


@pytest.mark.parametrize("standard", ["c++11", "c++14", "c++17", "c++20"])
@pytest.mark.parametrize("compiler", compilers("g++", "clang++"))
def test_c_header_in_cpp(installed: Installed, tmp_path: Path, compiler: str, standard: str) -> None:
    program = tmp_path / "program.cpp"
    program.write_text(C_PROGRAM)
    run([compiler, f"-std={standard}", *STRICT, f"-I{installed.include}", str(program)])


@pytest.mark.parametrize("limits", [[], ["-fno-exceptions", "-fno-rtti"]], ids=["plain", "no-exceptions"])
@pytest.mark.parametrize("standard", ["c++17", "c++20"])
@pytest.mark.parametrize("compiler", compilers("g++", "clang++"))
def test_cpp_header(installed: Installed, tmp_path: Path, compiler: str, standard: str, limits: list[str]) -> None:
    program = tmp_path / "program.cpp"
    program.write_text(CPP_PROGRAM)
    run([compiler, f"-std={standard}", *STRICT, *limits, f"-I{installed.include}", str(program)])


def test_a_result_that_is_not_looked_at_is_a_warning(installed: Installed, tmp_path: Path) -> None:
    program = tmp_path / "program.cpp"
    program.write_text("#include <kvcache.hpp>\nvoid f(kvcache::cache &cache) { cache.clear(); }\n")
    command = ["g++", "-std=c++17", "-Werror", "-fsyntax-only", f"-I{installed.include}", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "nodiscard" in done.stderr
