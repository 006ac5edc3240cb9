//! Layouts against those that a C compiler reports for the headers of rdma-core 44.0 on x86-64 Linux.

use std::mem::{align_of, offset_of, size_of};

use super::abi::*;

/// `size_of`, and `offset_of` of fields, against numbers.
macro_rules! layout {
    ($type:ty, $bytes:expr $(, $($field:ident).+ = $offset:expr)*) => {
        assert_eq!(size_of::<$type>(), $bytes, stringify!($type));
        $(assert_eq!(offset_of!($type, $($field).+), $offset, concat!(stringify!($type), ".", stringify!($($field).+)));)*
    };
}

#[test]
fn structures_that_we_hand_over_have_c_layout() {
    layout!(Segment, 16, address = 0, bytes = 8, local_key = 12);
    layout!(
        SendRequest,
        128,
        segments = 16,
        operation = 28,
        flags = 32,
        immediate = 36,
        remote_address = 40,
        remote_key = 48
    );
    layout!(ReceiveRequest, 32, segments = 16, segment_count = 24);
    layout!(QueuePairCapacity, 20);
    layout!(QueuePairInit, 64, capacity = 32, kind = 52, signal_all = 56);
    layout!(GlobalRoute, 24);
    layout!(AddressHandle, 32, destination_lid = 24, is_global = 29, port = 30);
    layout!(
        QueuePairAttributes,
        144,
        path_mtu = 8,
        receive_psn = 20,
        access = 32,
        capacity = 36,
        address = 56,
        alternate_address = 88,
        pkey_index = 120,
        reads_as_initiator = 126,
        rnr_timer = 128,
        port = 129,
        timeout = 130,
        rnr_retries = 132,
        rate_limit = 136
    );
}

#[test]
fn structures_that_the_library_fills_have_c_layout() {
    layout!(
        DeviceAttributes,
        232,
        max_region_bytes = 80,
        max_queue_pairs = 108,
        max_queue_pair_requests = 112,
        max_segments = 120,
        max_read_segments = 124,
        max_completions = 132,
        max_reads_as_target = 144,
        max_reads_as_initiator = 156,
        port_count = 227
    );
    layout!(
        PortAttributes,
        52,
        active_mtu = 8,
        gid_table_len = 12,
        max_message_bytes = 20,
        lid = 34,
        active_width = 43,
        link_layer = 46,
        capability_flags2 = 48
    );
    layout!(GidEntry, 32, index = 16, kind = 24);
    assert_eq!(align_of::<GidEntry>(), 8);
    layout!(WorkCompletion, 48, operation = 12, bytes = 20, immediate = 24, flags = 36);
}

#[test]
fn fields_that_we_read_of_the_librarys_own_structures_are_where_c_has_them() {
    assert_eq!(offset_of!(Context, ops), 8);
    assert_eq!(offset_of!(Context, ops.poll_cq), 96);
    assert_eq!(offset_of!(Context, ops.req_notify_cq), 104);
    assert_eq!(offset_of!(Context, ops.post_send), 208);
    assert_eq!(offset_of!(Context, ops.post_recv), 216);
    assert_eq!(offset_of!(Context, command_fd), 264);
    assert_eq!(offset_of!(Context, async_fd), 268);
    assert_eq!(offset_of!(MemoryRegion, local_key), 36);
    assert_eq!(offset_of!(MemoryRegion, remote_key), 40);
    assert_eq!(offset_of!(CompletionChannel, fd), 8);
    assert_eq!(offset_of!(QueuePair, number), 52);
}
