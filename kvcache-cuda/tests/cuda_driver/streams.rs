//! Streams and events.

use kvcache_cuda::driver::{Driver, Event, Priority, Stream};

use super::library::{WHOLE, calls, engine_stream, fail, in_child, use_device};
use super::open;

#[test]
fn streams_do_not_wait_for_the_default_stream_and_have_a_priority() {
    const TEST: &str = "streams::streams_do_not_wait_for_the_default_stream_and_have_a_priority";
    in_child(TEST, "", WHOLE, &[], || {
        let driver = open();
        use_device(0);
        calls();
        let high = driver.create_stream(Priority::High).unwrap();
        let low = driver.create_stream(Priority::Low).unwrap();
        assert_ne!(high, low);
        driver.destroy_stream(high);
        assert_eq!(
            calls(),
            [
                "stream 0: context 0 flags 1 priority -5",
                "stream 1: context 0 flags 1 priority 0",
                "stream 0 destroyed"
            ]
        );
        fail(c"cuStreamCreateWithPriority", 2);
        let error = driver.create_stream(Priority::Low).unwrap_err();
        assert_eq!(error.to_string(), "cuStreamCreateWithPriority failed: CUDA_ERROR_OUT_OF_MEMORY (2)");
        // What is gone already does no harm.
        driver.destroy_stream(high);
        driver.destroy_event(Event(0));
        assert!(calls().is_empty());
    });
}

#[test]
fn events_are_recorded_waited_for_and_polled() {
    const TEST: &str = "streams::events_are_recorded_waited_for_and_polled";
    in_child(TEST, "", WHOLE, &[], || {
        let driver = open();
        use_device(0);
        let (ours, engine) = (driver.create_stream(Priority::High).unwrap(), Stream(engine_stream(0, false)));
        calls();
        let event = driver.create_event().unwrap();
        driver.record_event(event, engine).unwrap();
        driver.wait_event(ours, event).unwrap();
        assert_eq!(driver.query_event(event), Ok(false));
        assert_eq!(driver.query_event(event), Ok(true));
        driver.record_event(event, Stream(0)).unwrap();
        driver.synchronize_event(event).unwrap();
        assert_eq!(driver.query_event(event), Ok(true));
        fail(c"cuEventQuery", 700);
        assert_eq!(driver.query_event(event).unwrap_err().code, 700);
        // An engine's stream on another device may wait for our event, but not be recorded by it.
        use_device(1);
        let other = Stream(engine_stream(1, false));
        assert_eq!(
            driver.record_event(event, other).unwrap_err().to_string(),
            "cuEventRecord failed: CUDA_ERROR_INVALID_HANDLE (400)"
        );
        driver.destroy_event(event);
        let calls = calls();
        let calls: Vec<&str> = calls
            .iter()
            .map(String::as_str)
            .filter(|line| line.starts_with("event") || line.contains("waits"))
            .collect();
        assert_eq!(
            calls,
            [
                "event 0: context 0 flags 3",
                "event 0 recorded in stream 1",
                "stream 0 waits for event 0",
                "event 0 recorded in stream 0",
                "event 0 synchronized",
                "event 0 destroyed"
            ]
        );
    });
}

#[test]
fn streams_of_others_are_refused_with_a_reason() {
    const TEST: &str = "streams::streams_of_others_are_refused_with_a_reason";
    in_child(TEST, "", WHOLE, &[], || {
        let driver = open();
        // Also on a thread on which another device is current, whose default stream is not meant.
        use_device(1);
        for stream in [0, 1, engine_stream(0, false), driver.create_stream(Priority::Low).unwrap().0] {
            assert_eq!(driver.check_stream(Stream(stream)), Ok(()), "{stream}");
        }
        let refusal = |stream| driver.check_stream(Stream(stream)).unwrap_err().to_string();
        assert_eq!(
            refusal(engine_stream(1, false)),
            "cuStreamGetCtx failed: CUDA_ERROR_INVALID_CONTEXT: the stream is of device 1, the copies are of device 0 (201)"
        );
        assert_eq!(
            refusal(engine_stream(0, true)),
            "cuStreamIsCapturing failed: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: the stream is recording a CUDA graph (900)"
        );
        assert_eq!(
            refusal(2),
            "cuStreamGetCtx failed: CUDA_ERROR_INVALID_HANDLE: the per-thread default stream is another one on each thread; \
             use a stream of its own (400)"
        );
        // Some other stream is recording in a way that forbids to ask about the default stream.
        fail(c"cuStreamIsCapturing", 906);
        assert_eq!(driver.check_stream(Stream(0)).unwrap_err().code, 906);
        let calls = calls();
        let [pushes, pops] =
            ["push", "pop"].map(|word| calls.iter().filter(|line| line.starts_with(word)).count());
        assert_eq!(pushes, pops + 1, "the test's own push stays: {calls:?}");
    });
}
