//! Block caches from settings, with a real server behind them.

#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use kvcache_assembly::{Cache, CacheSettings, Error, RemoteSettings, named_stats};
use kvcache_core::BlockKey;
use kvcache_core::fingerprint::{Namespace, ShardFingerprint};
use kvcache_core::slab::is_in_memory;
use kvcache_server::{Server, ServerConfig};

const BLOCK_BYTES: usize = 4096;
const NAMESPACE: [u8; 16] = [7; 16];
const SHARD: [u8; 16] = [9; 16];

fn server() -> Server {
    Server::start(ServerConfig { capacity_bytes: 1 << 20, ..ServerConfig::default() }).unwrap()
}

fn settings(server: &Server) -> CacheSettings {
    let mut remote = RemoteSettings::new(format!("tcp://{}", server.address()));
    // Machines that run tests are busy.
    remote.presence_wait_s = 5.0;
    remote.timeout_s = 10.0;
    CacheSettings { remote: Some(remote), ..CacheSettings::new(BLOCK_BYTES, 1 << 20) }
}

fn keys(cache: &Cache) -> Vec<BlockKey> {
    cache.keys().of(&[1u32, 2, 3, 4, 5, 6, 7, 8], 4, b"").unwrap()
}

fn put(cache: &Cache, keys: &[BlockKey], byte: u8) {
    let data = vec![byte; keys.len() * cache.core().block_bytes()];
    assert_eq!(cache.core().put(keys, &data).unwrap(), keys.len());
    assert!(cache.core().flush(Duration::from_secs(10)), "the blocks did not get to L2");
}

fn read(cache: &Cache, keys: &[BlockKey]) -> Option<Vec<u8>> {
    let mut out = vec![0; keys.len() * cache.core().block_bytes()];
    (cache.core().get(keys, &mut out).unwrap() == keys.len()).then_some(out)
}

#[test]
fn fingerprints_decide_who_shares() {
    let server = server();
    let named = CacheSettings { namespace: Some("model".to_owned()), ..settings(&server) };
    let by_id = CacheSettings { namespace_id: Some(Namespace::of_text("model").0), ..settings(&server) };
    let writer = named.open().unwrap();
    let keys = keys(&writer);
    put(&writer, &keys, 5);

    // A name and the fingerprint of it are the same namespace, and a cache without a shard is of the shard of its blocks.
    let own_shard = ShardFingerprint::of_fields([("block_bytes", &BLOCK_BYTES.to_le_bytes()[..])]);
    let spelt_out = CacheSettings { shard_id: Some(own_shard.0), ..by_id.clone() };
    for (what, same) in [("fingerprint", &by_id), ("both fingerprints", &spelt_out)] {
        let reader = same.open().unwrap();
        assert_eq!(self::keys(&reader), keys, "{what}");
        assert_eq!(read(&reader, &keys), Some(vec![5; 2 * BLOCK_BYTES]), "{what}");
    }
    // By the same keys: another namespace, another shard, another length.
    let others = [
        CacheSettings { namespace_id: Some(NAMESPACE), ..settings(&server) },
        CacheSettings { shard_id: Some(SHARD), ..named.clone() },
        CacheSettings { shard_id: Some(own_shard.0), block_bytes: 2 * BLOCK_BYTES, ..named.clone() },
    ];
    for other in others {
        let reader = other.open().unwrap();
        assert_eq!(reader.core().match_prefix(&keys), 0, "{other:?}");
        assert_eq!(read(&reader, &keys), None, "{other:?}");
    }
    server.stop();
}

#[test]
fn statistics_of_l2_are_named() {
    let server = server();
    let cache = CacheSettings { namespace_id: Some(NAMESPACE), ..settings(&server) }.open().unwrap();
    let keys = keys(&cache);
    put(&cache, &keys, 1);
    let text = named_stats::prometheus(named_stats::cache(&cache.core().stats()), &[]);
    for line in ["kvcache_l2_demoted_total 2", "kvcache_stored_total 2", "kvcache_block_bytes 4096"] {
        assert!(text.lines().any(|found| found == line), "{line} is missing:\n{text}");
    }
    server.stop();
}

#[test]
fn a_server_that_is_gone_is_a_problem_and_not_an_error() {
    let server = server();
    let settings = CacheSettings { namespace_id: Some(NAMESPACE), ..settings(&server) };
    let address = server.address();
    server.stop();
    let cache = settings.open().unwrap();
    assert_eq!(read(&cache, &keys(&cache)), None);
    // The client says so once it has tried to connect.
    let give_up = Instant::now() + Duration::from_secs(30);
    let mut problems = cache.problems();
    while problems.is_empty() && Instant::now() < give_up {
        std::thread::sleep(Duration::from_millis(10));
        problems = cache.problems();
    }
    assert!(problems.len() == 1 && problems[0].starts_with(&format!("server {address}: ")), "{problems:?}");
    let alone = CacheSettings::new(BLOCK_BYTES, 1 << 20).open().unwrap();
    assert!(!alone.has_remote() && alone.problems().is_empty());
}

/// Caches of different identities that lie in one folder do not find each other's blocks, and each finds its own.
#[test]
fn slabs_are_found_by_whoever_has_both_fingerprints() {
    let folder = PathBuf::from(format!("/dev/shm/kvcache-slabs-{}", std::process::id()));
    let of = |namespace: Option<&str>, namespace_id, shard_id| CacheSettings {
        namespace: namespace.map(str::to_owned),
        namespace_id,
        shard_id,
        slab_path: Some(folder.clone()),
        ..CacheSettings::new(BLOCK_BYTES, 1 << 20)
    };
    let identities = [
        of(Some("model"), None, None),
        of(Some("model"), None, Some(SHARD)),
        of(None, Some(NAMESPACE), None),
        of(None, Some(NAMESPACE), Some(SHARD)),
        of(None, Some([8; 16]), None),
    ];
    let keys = vec![BlockKey([3; 16])];
    let open = |settings: &CacheSettings| settings.open().unwrap();
    let opened: Vec<Cache> = identities.iter().map(open).collect();
    for (cache, byte) in opened.iter().zip(1..) {
        assert_eq!(cache.warnings(), [] as [String; 0]);
        cache.core().put(&keys, &vec![byte; BLOCK_BYTES]).unwrap();
    }
    drop(opened);
    for (settings, byte) in identities.iter().zip(1..) {
        assert_eq!(read(&open(settings), &keys), Some(vec![byte; BLOCK_BYTES]), "{settings:?}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A misspelt folder would fill a disk with blocks, and nobody would know why all is slow.
#[test]
fn folders_that_are_no_shared_memory_are_told() {
    let on_disk = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("folder-{}", std::process::id()));
    if is_in_memory(&on_disk).unwrap() {
        eprintln!("the target folder is in memory: nothing to see here");
        return;
    }
    let settings = CacheSettings {
        namespace: Some("model".to_owned()),
        slab_path: Some(on_disk.clone()),
        ..CacheSettings::new(BLOCK_BYTES, 1 << 20)
    };
    let missing = settings.open().err().unwrap();
    assert!(matches!(missing, Error::NoSlabFolder(_)), "{missing}");
    assert!(!on_disk.exists(), "it is not made");
    std::fs::create_dir(&on_disk).unwrap();
    let warnings = settings.open().unwrap().warnings();
    let start = format!("slab_path {} is not in shared memory (tmpfs): ", on_disk.display());
    assert!(warnings.len() == 1 && warnings[0].starts_with(&start), "{warnings:?}");
    std::fs::remove_dir_all(&on_disk).unwrap();
}

#[test]
fn errors_name_the_setting_and_the_remedy() {
    let missing = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("no-such-token");
    let empty =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("empty-token-{}", std::process::id()));
    std::fs::write(&empty, " \n").unwrap();
    let plain = CacheSettings::new(BLOCK_BYTES, 1 << 20);
    let named = CacheSettings { namespace: Some("model".to_owned()), ..plain.clone() };
    let with = |change: &dyn Fn(&mut RemoteSettings)| {
        let mut remote = RemoteSettings::new("tcp://127.0.0.1:1");
        change(&mut remote);
        CacheSettings { remote: Some(remote), ..named.clone() }
    };
    let hash =
        |hash: &str, settings: CacheSettings| CacheSettings { hash: Some(hash.to_owned()), ..settings };
    let cases = [
        (CacheSettings { block_bytes: 0, ..plain.clone() }, "block_bytes is 0: give the bytes of one block"),
        (CacheSettings { copy_threads: 0, ..plain.clone() }, "copy_threads is 0: use 1"),
        (hash("md5", plain.clone()), "unknown hash \"md5\": use \"blake3\""),
        (hash("xxh3", with(&|_| ())), "hash \"xxh3\" cannot be used with remote"),
        (CacheSettings { namespace: None, ..with(&|_| ()) }, "remote needs a namespace: name the model"),
        (
            CacheSettings { namespace: Some(" ".to_owned()), ..with(&|_| ()) },
            "namespace is empty, and blocks",
        ),
        (
            CacheSettings {
                namespace: Some(String::new()),
                slab_path: Some("/dev/shm".into()),
                ..plain.clone()
            },
            "namespace is empty, and blocks",
        ),
        (
            CacheSettings { capacity_bytes: 1 << 60, ..plain.clone() },
            "capacity of 1152921504606846976 bytes is above this machine's memory of ",
        ),
        (
            CacheSettings { namespace_id: Some(NAMESPACE), ..named.clone() },
            "namespace and namespace_id are both",
        ),
        (with(&|remote| remote.ingestion = "some".to_owned()), "unknown ingestion \"some\": use \"all\""),
        (with(&|remote| remote.replicas = 0), "replicas is 0: use 1 to"),
        (with(&|remote| remote.timeout_s = -1.0), "timeout_s is -1: give seconds from 0 up"),
        (with(&|remote| remote.fetch_wait_s = f64::NAN), "fetch_wait_s is NaN: give seconds"),
        (
            with(&|remote| remote.presence_wait_s = 1e30),
            "presence_wait_s is 1000000000000000000000000000000: give",
        ),
        (with(&|remote| remote.url = "tls://a:1".to_owned()), "remote asks for TLS and tls_ca is missing"),
        (with(&|remote| remote.token_file = Some(missing.clone())), "cannot read the token file "),
        (with(&|remote| remote.token_file = Some(empty.clone())), "the token file "),
    ];
    for (settings, start) in cases {
        let text = settings.open().err().map(|error| error.to_string()).unwrap_or_default();
        assert!(text.starts_with(start), "{start:?}, not {text:?}");
    }
    assert!(matches!(named.open().map(|_| ()), Ok(())));
    // A cache that nobody else finds needs no name.
    assert!(CacheSettings { namespace: Some(String::new()), ..plain }.open().is_ok());
    assert!(matches!(with(&|remote| remote.url = "gopher://a".to_owned()).open(), Err(Error::RemoteUrl(_))));
    std::fs::remove_file(&empty).unwrap();
}
