//! Prints the definition of the `KVCache` resource.

use kube::CustomResourceExt;
use kvcache_operator::api::KVCache;

fn main() -> Result<(), serde_json::Error> {
    println!("{}", serde_json::to_string_pretty(&KVCache::crd())?);
    Ok(())
}
