//! Waits that end: with what was waited for, or with a panic that says what never came.

use std::time::{Duration, Instant};

/// For what takes milliseconds when nothing else runs.
pub(crate) const SHORT: Duration = Duration::from_secs(20);

/// For what the control plane does in its own time: garbage collection, back-offs, a slow machine.
pub(crate) const LONG: Duration = Duration::from_secs(90);

const PAUSE: Duration = Duration::from_millis(50);

/// Asks until there is an answer.
///
/// # Panics
///
/// After `within`, naming `what`.
pub(crate) async fn until<T, F>(what: &str, within: Duration, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(start.elapsed() < within, "waited {} s in vain until {what}", within.as_secs());
        tokio::time::sleep(PAUSE).await;
    }
}
