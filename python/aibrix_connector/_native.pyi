"""The compiled half: a thin face of the Rust crate ``kvcache-core``.

``BlockCache`` is for everybody. ``Planner`` and ``Store`` are the two halves of the vLLM connector and may change
between any two releases.
"""

from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, final

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

__all__ = ["BlockCache", "CudaCopies", "Planner", "Remote", "Store", "__version__", "fingerprint"]

# NumPy's own stubs say that an array is a buffer from Python 3.12 on only.
_Array: TypeAlias = Buffer | npt.NDArray[Any]

__version__: str

def fingerprint(kind: Literal["namespace", "shard"], fields: Sequence[tuple[str, str]]) -> bytes:
    """Returns the fingerprint of named fields, as ``docs/format.md`` defines it.

    Args:
        kind: What the fingerprint is for; the two kinds never give the same value.
        fields: Names and values. Their order matters.

    Returns:
        16 bytes.

    Raises:
        ValueError: ``kind`` is neither of the two.
    """

@final
class BlockCache:
    """A cache of fixed-size blocks in host memory, keyed by the tokens before them.

    A block is the KV data of ``block_tokens`` tokens over all layers: ``block_bytes`` bytes that this class never looks
    into. Keys come from :meth:`hash_tokens`; the key of a block covers every token up to the block's end, so a cache
    answers with the *leading* blocks of a prompt and never with one behind a hole.

    Every method may be called from any number of threads at a time, also without the GIL. The GIL is released around
    copies. Buffers that are passed in must not be changed (nor, for ``out``, read) by other threads during the call: a
    violation can garble the block that is being copied, nothing else.

    Any object that exports a C-contiguous buffer is accepted as data: ``bytes``, ``memoryview``, a NumPy array of any
    number type, a CPU tensor's ``.numpy()``. NumPy has no bfloat16: ``.view(torch.uint8)`` such a tensor first.
    """

    def __new__(
        cls,
        block_bytes: int,
        capacity_bytes: int,
        *,
        eviction: str = "default",
        namespace: str | None = None,
        remote: str | None = None,
        slab_path: str | PathLike[str] | None = None,
        copy_threads: int | None = None,
        hash: Literal["blake3", "xxh3"] | None = None,
        ingestion: Literal["all", "hot", "evicted"] = "all",
        token_file: str | PathLike[str] | None = None,
        tls_ca: str | PathLike[str] | None = None,
        tls_name: str | None = None,
        shared_memory: bool = True,
    ) -> Self:
        """Opens a cache. Takes milliseconds: memory is taken in the background, and used as it arrives.

        Args:
            block_bytes: Bytes of one block, for all layers.
            capacity_bytes: Memory for blocks, rounded down to whole blocks. Metadata comes on top: at most 128 bytes a
                block, counted in :meth:`stats`, and 128 bytes a block in a slab file.
            eviction: Which block leaves when room is needed: ``default`` (``s3fifo``, S3-FIFO that adapts), ``lru``,
                ``s3fifo-fixed``, ``hit-density``.
            namespace: Separates caches whose blocks must not be mixed: name the model and all else that makes the bytes
                of a block different. Part of every key. Mandatory with ``slab_path`` and ``remote``.
            remote: A ring of cache servers that share blocks with other caches of the same namespace and block size:
                ``tcp://host:port,host:port``, ``infinistore+tcp://...``, ``tls://...``, ``rdma://...``,
                ``infinistore+rdma://...``, ``redis://host/key`` or ``file:///members.json``. A block that is not here
                is asked for there, a block stored here is stored there in the background. Servers that fail or do not
                answer are misses: nothing raises, see :meth:`problems`.
            slab_path: A directory in shared memory such as ``/dev/shm``. Blocks are kept in a file there, and a later
                process with the same namespace and sizes finds them, also after SIGKILL. None keeps them in private
                memory that is gone with the process. It is made if need be; on a disk it has to be there.
            copy_threads: Threads that copy, the caller's included. None and 1 copy on the caller's thread.
            hash: How tokens become keys. None means ``blake3`` with a ``slab_path`` or ``remote`` and ``xxh3`` without.
                ``xxh3`` is faster and for private, single-tenant caches only: whoever chooses tokens can make keys
                collide. Not with ``remote``.
            ingestion: Which blocks go to ``remote``: ``all`` when they are stored, ``hot`` when they are used again,
                ``evicted`` shortly before they leave.
            token_file: A file with the token that the servers ask for.
            tls_ca: With ``tls://``: a PEM file with the certificates that sign the servers'.
            tls_name: With ``tls://``: the name in the servers' certificates, where it is not their host.
            shared_memory: Whether the memory of servers on this host is used directly; False: TCP as for all others.

        Raises:
            TypeError: A size is not a whole number.
            ValueError: Names the value and the remedy: a negative size, no or too little capacity, more than there is
                memory, an unknown policy or hash, a directory that cannot be written, a ``slab_path`` or a ``remote``
                without ``namespace``, a ``remote`` that cannot be understood, settings of it without it.

        Warns:
            RuntimeWarning: The cache works, but not as asked: for example too little shared memory, so that blocks are
                in private memory.
        """

    @property
    def block_bytes(self) -> int:
        """Bytes of a block. Readable after :meth:`close`."""

    def hash_tokens(self, tokens: _Array, block_tokens: int = 16, extra: bytes = ...) -> npt.NDArray[np.uint8]:
        """Returns the keys of the whole blocks of ``tokens``; a tail shorter than a block is left out.

        Linear in the tokens: hash a prompt once and slice the keys. Works on a closed cache.

        Args:
            tokens: Token ids, int32 or int64, any shape, C-contiguous; each within 0 and 4294967295.
            block_tokens: Tokens of a block.
            extra: What tokens do not say and bytes depend on: a LoRA adapter, a tenant's salt, an image's digest.

        Returns:
            uint8 of shape ``[len(tokens) // block_tokens, 16]``, read-only.

        Raises:
            TypeError: ``tokens`` is no buffer of int32 or int64, or ``block_tokens`` is not a whole number.
            ValueError: ``tokens`` is not contiguous or holds what is no token id, or ``block_tokens`` is below 1.
        """

    def match(self, keys: _Array) -> int:
        """Returns the number of leading blocks that are in the cache. Changes nothing, copies nothing.

        With ``remote`` blocks on the ring count as well; servers that do not answer within 50 ms have none.

        Args:
            keys: uint8 of shape ``[blocks, 16]``, or ``16 * blocks`` bytes.

        Raises:
            TypeError: ``keys`` is no buffer of uint8.
            ValueError: ``keys`` has another shape, or the cache is closed.
        """

    def put(self, keys: _Array, data: _Array) -> int:
        """Stores blocks. Those that are there already are not copied again.

        With ``remote`` they go there in the background; what exceeds the bound of blocks on their way stays here only.

        Args:
            keys: uint8 of shape ``[blocks, 16]``: a prefix from its *first* block on, so that nothing is behind a hole.
            data: ``blocks * block_bytes`` bytes, one block after the other, C-contiguous.

        Returns:
            Leading blocks that the cache holds now: fewer than ``blocks`` when everything else is in use.

        Raises:
            TypeError: An argument exports no buffer of numbers.
            ValueError: A wrong size or shape, not contiguous, or the cache is closed. Nothing is stored then.
        """

    def get(self, keys: _Array, out: _Array) -> int:
        """Copies the leading blocks that are in the cache into ``out``.

        With ``remote`` blocks that are not here are fetched, verified and kept. It waits 2 s for them at most.

        Args:
            keys: uint8 of shape ``[blocks, 16]``.
            out: Writable, ``blocks * block_bytes`` bytes, C-contiguous.

        Returns:
            Blocks copied. The rest of ``out`` is left as it was; with ``remote`` it may hold anything.

        Raises:
            TypeError: An argument exports no buffer of numbers.
            ValueError: A wrong size or shape, not contiguous, read-only, or the cache is closed. Nothing is copied.
        """

    def delete(self, keys: _Array) -> int:
        """Removes blocks, here, on ``remote`` and for a later process; returns how many there were.

        Raises:
            TypeError: ``keys`` is no buffer of uint8.
            ValueError: ``keys`` has another shape, or the cache is closed.
        """

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Waits until no block is on its way to ``remote``, for ``timeout_s`` at most; returns whether none is.

        What did not get there is in :meth:`stats`: ``demote_dropped`` (more than 64 MiB, or 64 blocks, on their way at
        a time) and ``demote_failed``.

        Raises:
            ValueError: ``timeout_s`` is negative or no number, or the cache is closed.
        """

    def problems(self) -> list[str]:
        """What is wrong now with ``remote``, one line each: servers that cannot be reached or refuse the token, say.

        Raises:
            ValueError: The cache is closed.
        """

    def clear(self) -> None:
        """Removes every block, here and for a later process.

        On ``remote`` other caches keep theirs. This cache finds none of them from then on, and shares none.

        Raises:
            ValueError: The cache is closed.
        """

    def stats(self) -> dict[str, Any]:
        """Returns every count by name.

        ``slots`` is the capacity in blocks and the sum of ``slots_ready``, ``slots_free``, ``slots_filling``,
        ``slots_draining`` and ``slots_unusable`` (memory not taken yet); ``slots_pinned`` of them are being read.
        ``stored``, ``evicted``, ``refused``, ``over_share`` (always 0: a put has no share), ``failed_fills``,
        ``cancelled_fills``, ``adopted`` (found after a restart) and ``removed`` only grow. ``metadata_bytes`` is memory
        beside the blocks, ``slab_bytes`` that of the blocks. ``policy`` is the eviction policy's own name.

        With ``remote`` there is ``l2``: ``questions`` about presence and those that were ``questions_late``; blocks
        ``fetched``, ``missing`` there, and ``fetch_failed`` (late, damaged, unreachable); blocks ``demoted``, refused
        or late (``demote_failed``), left out because too many were on their way (``demote_dropped``), and
        ``demoting`` now.

        Raises:
            ValueError: The cache is closed.
        """

    def close(self) -> None:
        """Gives the memory back once calls under way have returned. May be repeated.

        Blocks in a slab stay for a later process. Blocks on their way to ``remote`` may not arrive: :meth:`flush`
        first.
        """

    def __enter__(self) -> Self:
        """Returns the cache itself."""

    def __exit__(self, *_exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Closes the cache."""

@final
class Remote:
    """Where L2 is and how it is used. Connections are made by whom it is given to, in that process."""

    def __new__(
        cls,
        *,
        url: str,
        ingestion: str = "all",
        replicas: int = 1,
        token_file: str | PathLike[str] | None = None,
        tls_ca: str | PathLike[str] | None = None,
        tls_name: str | None = None,
        shared_memory: bool = True,
        timeout_s: float = 2.0,
        fetch_wait_s: float = 2.0,
        presence_wait_s: float = 0.05,
        in_flight: int = 32,
    ) -> Self:
        """Checks what can be checked without the network.

        Args:
            url: ``tcp://a:12345,b:12345``, ``tls://…``, ``file:///members.json`` or ``redis://host:6379/key``.
            ingestion: ``all``, ``hot`` or ``evicted``.
            replicas: Servers that hold each block.
            token_file: A file with the servers' token.
            tls_ca: A file with the certificates (PEM) that sign the servers'.
            tls_name: The name in those certificates, where it is not the host of the servers' addresses.
            shared_memory: Whether the memory of servers on this host is used directly.
            timeout_s: The longest one operation may take.
            fetch_wait_s: The longest a request waits for blocks on their way.
            presence_wait_s: The longest a request waits to hear what is there.
            in_flight: Slots on their way at once on each rank, in either direction.

        Raises:
            ValueError: Something cannot be used; names the value and the remedy.
        """

    def problems(self) -> list[str]:
        """Returns what is wrong now with the list of servers and the connections to them. May take a millisecond."""

@final
class CudaCopies:
    """The copy engine of one CUDA device by itself, for benchmarks and tests of it.

    It copies between addresses that the caller vouches for, as ``ctypes.memmove`` does: a wrong one ends the process or
    its CUDA context.
    """

    def __new__(
        cls,
        device: str,
        path: str = "auto",
        *,
        fake_memory: Sequence[tuple[int, int]] | None = None,
        seed: int = 0,
    ) -> Self:
        """Opens a device and measures its paths: some ten milliseconds. A fake one's are chosen by rules of thumb.

        Args:
            device: ``cuda:N``.
            path: ``auto``, ``dma_batch``, ``dma`` or ``kernel``.
            fake_memory: If given, no device is opened: host memory of these (base, bytes) plays its part.
            seed: What a fake device does when.

        Raises:
            ValueError: CUDA is unavailable, and why; or there is no such device or path.
        """

    def describe(self) -> dict[str, Any]:
        """Returns what the engine is and has done.

        Keys: ``name``, ``ordinal``, ``pci_address``, ``compute_capability``, ``driver_version``, ``paths`` that can be
        used, ``remarks`` on those that cannot, ``rates`` measured at the start as (direction, path, piece bytes, count,
        bytes per second), ``counts`` as (direction, path, batches, pieces, bytes), ``pageable_batches``.
        """

    def choose(self, direction_name: str, total_bytes: int, count: int) -> str:
        """Returns the path that ``count`` pieces would take; the direction is ``load`` or ``offload``."""

    def register(self, base: int, bytes: int) -> None:
        """Pins host memory, which stays mapped until :meth:`unregister` or the end of this object.

        Raises:
            ValueError: The driver refuses, in its own words.
        """

    def unregister(self, base: int) -> None:
        """Undoes :meth:`register`, with nothing in flight on it."""

    def submit(
        self,
        direction_name: str,
        pieces: Sequence[tuple[int, int, int]],
        *,
        after: int | None = None,
        urgent: bool = False,
    ) -> int:
        """Starts copies and returns their ticket; their memory is in use until :meth:`wait` has seen the end.

        Args:
            direction_name: ``load`` (host to device) or ``offload``.
            pieces: (source, destination, bytes).
            after: A stream whose work so far comes first.
            urgent: Not behind loads that are not.

        Raises:
            ValueError: The engine is full, or cannot do it.
        """

    def order_after(self, ticket: int, stream: int) -> None:
        """What the stream gets from now on waits for the copies.

        Raises:
            ValueError: The stream cannot be used, or the copies have failed.
        """

    def wait(self, ticket: int, timeout_s: float) -> bool:
        """Waits for the end of copies, without the GIL; returns whether it came in time.

        Raises:
            ValueError: They have failed, or the ticket is unknown.
        """

    def stream_for_cpu(self) -> int | None:
        """With a fake device: returns the handle that stands for the work of an engine on the CPU."""

    def violations(self) -> list[str]:
        """With a fake device: runs what is pending and returns what was done that no CUDA program may do."""

@final
class Planner:
    """The scheduler half of the vLLM connector: decides what is loaded and offloaded. No call blocks."""

    def __new__(
        cls,
        *,
        namespace: bytes,
        groups: Sequence[tuple[str, int, int]],
        slot_blocks: int,
        hash_tokens: int,
        ranks: int,
        null_block: int = 0,
        key_source: str = "engine",
        hash: str = "blake3",
        eviction: str = "default",
        load_mode: str = "auto",
        min_load_tokens: int = 1,
        fill_wait_s: float = 0.2,
        startup_wait_s: float = 2.0,
        store_on_sight: int = 1,
        prompt_only: bool = False,
        keep_hashes: bool = False,
        remote: Remote | None = None,
    ) -> Self:
        """Makes a planner that waits for the first report of every rank.

        Args:
            namespace: 16 bytes from :func:`fingerprint`.
            groups: Kind (``full``, ``sliding`` or ``state``), tokens of a block and of the window, for each group.
            slot_blocks: Engine blocks in a slot.
            hash_tokens: Tokens that one of the engine's hashes covers.
            ranks: Workers that report.
            null_block: The engine's block id for "no block".
            key_source: ``engine`` or ``tokens``.
            hash: How tokens become keys.
            eviction: Name of the eviction policy.
            load_mode: ``auto``, ``layerwise`` or ``async``.
            min_load_tokens: Do not load fewer tokens.
            fill_wait_s: The longest a request waits for blocks that are being filled.
            startup_wait_s: The longest a request waits for the ranks' first reports.
            store_on_sight: Store a block when it is seen for this many times.
            prompt_only: Store blocks of prompts only.
            keep_hashes: Keep the engine's hash of each slot, for events.
            remote: L2. It is used if every rank has it too.

        Raises:
            ValueError: A name is not known, there is no group, a number is 0 that must not be, or the engine's hashes
                do not end where slots do.
        """

    def add_request(
        self,
        request: str,
        *,
        prompt_tokens: int,
        skip_load: bool = False,
        skip_store: bool = False,
        max_load_tokens: int | None = None,
        max_store_tokens: int | None = None,
        extra: bytes = ...,
    ) -> None:
        """Announces a request; a known id is left as it is. ``extra`` separates its keys."""

    def known_units(self, request: str) -> int:
        """Returns the engine hashes (or tokens) known of a request; 0 for an unknown one."""

    def extend_hashes(self, request: str, hashes: Sequence[bytes]) -> None:
        """Appends engine block hashes, after those known."""

    def extend_tokens(self, request: str, tokens: Sequence[int]) -> None:
        """Appends tokens, after those known."""

    def prefetch(self, request: str, total_tokens: int, now: float) -> None:
        """Asks L2 for a request's blocks, if there is one, before the engine first asks :meth:`lookup`."""

    def remote_tokens(self, request: str) -> int:
        """Returns how many tokens of the request's last load came from L2 for it."""

    def lookup(self, request: str, local_tokens: int, total_tokens: int, now: float) -> tuple[int | None, bool]:
        """Returns the tokens that can be loaded beyond ``local_tokens`` (None: ask again), and whether between steps.

        Args:
            request: Its id.
            local_tokens: Tokens that the engine has itself.
            total_tokens: All tokens; one of them is always left to compute.
            now: Seconds of a monotonic clock.
        """

    def commit_load(self, request: str, external_tokens: int, blocks: Sequence[Sequence[int]]) -> bool:
        """Starts the load that the engine counts on; returns whether it runs between steps.

        Args:
            request: Its id.
            external_tokens: Tokens that will be loaded; 0 for none.
            blocks: The request's whole block table, per group.
        """

    def offload(
        self, request: str, computed_tokens: int, blocks: Sequence[Sequence[int]]
    ) -> tuple[int | None, list[int], list[tuple[int, int]], int]:
        """Offloads what is new of a request's first ``computed_tokens`` tokens.

        Returns:
            The job's number if there is one, the engine blocks to hold until it has ended, its slots as (group, index
            within the request), and the tokens below which nothing new can be offloaded.
        """

    def finish(self, request: str) -> None:
        """The request will not be asked about again. Its jobs end by themselves."""

    def take_plan(self, scheduled_tokens: int, now: float) -> bytes | None:
        """Returns this step's work for the workers, or None."""

    def absorb(self, report: bytes) -> list[tuple[int, list[int], list[int]]]:
        """Takes in one rank's report.

        Returns:
            The jobs that every rank has reported now: number, engine blocks to let go of, positions of the slots that
            are hits now.

        Raises:
            ValueError: ``report`` is damaged.
        """

    def reset(self) -> int:
        """Forgets every block, also for restarts; returns the new epoch."""

    def has_pending_work(self) -> bool:
        """Whether the engine has to keep stepping for jobs to end."""

    def take_removed(self) -> list[bytes]:
        """Returns the engine's hashes of blocks that left since the last call."""

    def activity(self) -> int:
        """Grows whenever :meth:`stats` may have changed."""

    def stats(self) -> dict[str, Any]:
        """Returns every count by name."""

@final
class Store:
    """The worker half of the vLLM connector: executes plans on one rank's slab and engine tensors."""

    def __new__(
        cls,
        *,
        rank: int,
        ranks: int,
        leader: int,
        copies: int,
        layers: Sequence[tuple[str, int, int, int, int, int, int, int]],
        slot_blocks: int,
        capacity_bytes: int,
        namespace: bytes,
        shard: bytes,
        slab_dir: str | PathLike[str] | None,
        engine_id: str,
        owner_pid: int,
        copy_threads: int,
        copy_cpus: Sequence[int],
        layers_ahead: int,
        verify_l1: bool,
        drill: str | None,
        remote: Remote | None = None,
        device: str | None = None,
        device_memory: Sequence[tuple[int, int]] = ...,
        copy_path: str = "auto",
    ) -> Self:
        """Opens the slab.

        Args:
            rank: This rank.
            ranks: Ranks that share ``capacity_bytes``.
            leader: The rank that stores for all whose bytes are the same; this one, if no other's are.
            copies: Ranks whose bytes are the same as this one's, itself included. With more than one and no
                ``slab_dir``, they share memory that no later engine finds.
            layers: (name, group, base, block_stride, block_count, segments, segment_stride, segment_bytes) of each
                layer, in forward order. Base is an address, valid until :meth:`close`; the rest is in bytes.
            slot_blocks: Engine blocks in a slot.
            capacity_bytes: Memory of all ranks.
            namespace: 16 bytes from :func:`fingerprint`.
            shard: 16 bytes from :func:`fingerprint`.
            slab_dir: A directory in shared memory, or None for private memory.
            engine_id: Names the engine: the same after a restart, another for other engines of the host.
            owner_pid: The engine's core process.
            copy_threads: Threads beside the caller.
            copy_cpus: CPUs that they may use; empty for any.
            layers_ahead: Layers that a layer-wise load runs ahead.
            verify_l1: Verify a checksum before every load.
            drill: Break something on purpose, or None.
            remote: L2, or None.
            device: The CUDA device that holds the layers, as ``cuda:N``; None for layers in host memory.
            device_memory: (base, bytes) of the memory behind the layers, which the drill ``fake_cuda`` takes for a
                device's.
            copy_path: How the device copies: ``auto``, ``dma_batch``, ``dma`` or ``kernel``.

        Raises:
            ValueError: A layout, a size, a directory or a drill that cannot be used; names the value and the remedy.
        """

    def describe(self) -> str:
        """Returns what was opened, in one line for the log."""

    def warnings(self) -> list[str]:
        """Returns what the user should know, one line each."""

    def problems(self) -> list[str]:
        """Returns what makes this rank's part slower or smaller than it could be, one line each, while it is so."""

    def device(self) -> dict[str, Any] | None:
        """Returns what the device is and has copied, as :meth:`CudaCopies.describe`, and how far memory is pinned.

        The keys of the latter: ``pinned_bytes``, ``is_pinning``, ``pinning_s`` and ``pinning_failure``. None for host
        copies.
        """

    def stream_for_cpu(self) -> int | None:
        """Drill ``fake_cuda``: returns the handle that stands for the work of an engine on the CPU."""

    def violations(self) -> list[str]:
        """Drill ``fake_cuda``: runs what is pending and returns what was done that no CUDA program may do."""

    def begin_step(self, plan: bytes, stream: int | None = None) -> tuple[bool, bool]:
        """Takes a step's work; returns whether it loads layer by layer, and whether it offloads.

        ``stream``, here and below, is the raw handle of the engine's stream, if the engine computes on a device: copies
        wait for what it holds at the call. This call comes before the stream gets the step's work.

        Raises:
            ValueError: ``plan`` is damaged, or the store is closed. The latter holds for all methods.
        """

    def start_loads(self) -> None:
        """Starts this step's loads."""

    def wait_layer(self, layer: int, stream: int | None = None) -> None:
        """Returns when the layer's blocks are loaded; copies itself meanwhile, without the GIL.

        With a stream it returns at once: what the stream gets from now on waits.
        """

    def store_layer(self, layer: int, stream: int | None = None) -> None:
        """The layer has been computed: its part of this step's offloads can be copied."""

    def end_step(self, finish: bool, last: bool, stream: int | None = None) -> bool:
        """The forward pass is over.

        ``finish`` waits for all copies, ``last`` ends everything between L1 and L2 as well.

        Returns:
            Whether anything is left in flight.
        """

    def rest(self, timeout_s: float) -> None:
        """Waits until a load between steps has ended, or a value has come from L2 or got there. Without the GIL."""

    def take_received(self) -> tuple[list[str], list[str]]:
        """Returns the requests whose load between steps has ended since the last call, and which of them failed."""

    def take_load_errors(self) -> list[int]:
        """Returns the engine blocks that were promised and not loaded since the last call."""

    def take_report(self) -> bytes | None:
        """Returns this rank's report, or None if there is nothing to say."""

    def read_block(self, group: int, block: int) -> bytes:
        """Returns the bytes of one engine block, as a slot would hold them.

        Raises:
            ValueError: There is no such block, or the copy failed.
        """

    def write_block(self, group: int, block: int, bytes: bytes) -> None:
        """Writes what :meth:`read_block` returned into a block that nobody uses.

        Raises:
            ValueError: There is no such block, the length is wrong, or the copy failed.
        """

    def is_settled(self) -> bool:
        """Whether there will be nothing to report before the next plan with jobs."""

    def activity(self) -> int:
        """Grows whenever :meth:`stats` may have changed."""

    def stats(self) -> dict[str, Any]:
        """Returns every count by name."""

    def timeline(self) -> list[tuple[str, int, int, int]]:
        """Returns what the drill ``timeline`` recorded: (what, layer, began, ended).

        ``what`` is ``wait``, ``computed``, ``load`` or ``offload``; times are nanoseconds since the store was opened.
        """

    def give_up(self) -> None:
        """This rank gives up in the middle of a step; :meth:`close` comes next."""

    def close(self) -> None:
        """Ends what is in flight and gives the memory back. May be repeated.

        Afterwards nothing touches the engine's tensors.
        """
