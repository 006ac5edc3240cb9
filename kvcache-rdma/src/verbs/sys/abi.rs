//! The binary interface of libibverbs (symbol version `IBVERBS_1.1`), as far as it is used.
//!
//! Written by hand from the structures' documented layout; `abi_tests` compares sizes and offsets with what a C
//! compiler says. Structures that the library allocates are declared up to the last field that is read here.
//! Enumerations of C are integers: a driver may send values that no enumeration of ours has.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// A device in the list of devices. Its name is asked for by `ibv_get_device_name`.
#[repr(C)]
pub(in crate::verbs) struct Device {
    _opaque: [u8; 0],
}

/// An opened device.
#[repr(C)]
pub(in crate::verbs) struct Context {
    pub(in crate::verbs) device: *mut Device,
    pub(in crate::verbs) ops: ContextOps,
    pub(in crate::verbs) command_fd: c_int,
    pub(in crate::verbs) async_fd: c_int,
}

/// The driver's functions for the data path, which C calls through inline functions of the header.
#[repr(C)]
pub(in crate::verbs) struct ContextOps {
    _before_poll: [*mut c_void; 11],
    pub(in crate::verbs) poll_cq:
        Option<unsafe extern "C" fn(*mut CompletionQueue, c_int, *mut WorkCompletion) -> c_int>,
    pub(in crate::verbs) req_notify_cq: Option<unsafe extern "C" fn(*mut CompletionQueue, c_int) -> c_int>,
    _before_post: [*mut c_void; 12],
    pub(in crate::verbs) post_send:
        Option<unsafe extern "C" fn(*mut QueuePair, *mut SendRequest, *mut *mut SendRequest) -> c_int>,
    pub(in crate::verbs) post_recv:
        Option<unsafe extern "C" fn(*mut QueuePair, *mut ReceiveRequest, *mut *mut ReceiveRequest) -> c_int>,
    _after_post: [*mut c_void; 5],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::verbs) struct DeviceAttributes {
    pub(in crate::verbs) firmware: [c_char; 64],
    pub(in crate::verbs) node_guid: u64,
    pub(in crate::verbs) system_image_guid: u64,
    pub(in crate::verbs) max_region_bytes: u64,
    pub(in crate::verbs) page_sizes: u64,
    pub(in crate::verbs) vendor_id: u32,
    pub(in crate::verbs) vendor_part_id: u32,
    pub(in crate::verbs) hardware_version: u32,
    pub(in crate::verbs) max_queue_pairs: c_int,
    pub(in crate::verbs) max_queue_pair_requests: c_int,
    pub(in crate::verbs) capability_flags: c_uint,
    pub(in crate::verbs) max_segments: c_int,
    pub(in crate::verbs) max_read_segments: c_int,
    pub(in crate::verbs) max_completion_queues: c_int,
    pub(in crate::verbs) max_completions: c_int,
    pub(in crate::verbs) max_regions: c_int,
    pub(in crate::verbs) max_domains: c_int,
    /// Reads (and atomics) that a queue pair may serve at a time.
    pub(in crate::verbs) max_reads_as_target: c_int,
    _max_ee_reads: c_int,
    _max_target_resources: c_int,
    /// Reads (and atomics) that a queue pair may have outstanding.
    pub(in crate::verbs) max_reads_as_initiator: c_int,
    _between: [c_int; 16],
    pub(in crate::verbs) max_pkeys: u16,
    pub(in crate::verbs) ack_delay: u8,
    pub(in crate::verbs) port_count: u8,
    _padding: [u8; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(in crate::verbs) struct PortAttributes {
    pub(in crate::verbs) state: c_int,
    pub(in crate::verbs) max_mtu: c_int,
    pub(in crate::verbs) active_mtu: c_int,
    pub(in crate::verbs) gid_table_len: c_int,
    pub(in crate::verbs) capability_flags: u32,
    pub(in crate::verbs) max_message_bytes: u32,
    pub(in crate::verbs) bad_pkeys: u32,
    pub(in crate::verbs) qkey_violations: u32,
    pub(in crate::verbs) pkey_table_len: u16,
    pub(in crate::verbs) lid: u16,
    pub(in crate::verbs) subnet_manager_lid: u16,
    pub(in crate::verbs) lid_mask: u8,
    pub(in crate::verbs) max_virtual_lanes: u8,
    pub(in crate::verbs) subnet_manager_level: u8,
    pub(in crate::verbs) subnet_timeout: u8,
    pub(in crate::verbs) init_type_reply: u8,
    pub(in crate::verbs) active_width: u8,
    pub(in crate::verbs) active_speed: u8,
    pub(in crate::verbs) physical_state: u8,
    pub(in crate::verbs) link_layer: u8,
    pub(in crate::verbs) flags: u8,
    pub(in crate::verbs) capability_flags2: u16,
}

#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
pub(in crate::verbs) struct GidEntry {
    pub(in crate::verbs) gid: [u8; 16],
    pub(in crate::verbs) index: u32,
    pub(in crate::verbs) port: u32,
    pub(in crate::verbs) kind: u32,
    pub(in crate::verbs) interface: u32,
}

/// A protection domain.
#[repr(C)]
pub(in crate::verbs) struct Domain {
    _opaque: [u8; 0],
}

#[repr(C)]
pub(in crate::verbs) struct MemoryRegion {
    pub(in crate::verbs) context: *mut Context,
    pub(in crate::verbs) domain: *mut Domain,
    pub(in crate::verbs) address: *mut c_void,
    pub(in crate::verbs) bytes: usize,
    pub(in crate::verbs) handle: u32,
    pub(in crate::verbs) local_key: u32,
    pub(in crate::verbs) remote_key: u32,
}

#[repr(C)]
pub(in crate::verbs) struct CompletionChannel {
    pub(in crate::verbs) context: *mut Context,
    pub(in crate::verbs) fd: c_int,
    pub(in crate::verbs) references: c_int,
}

#[repr(C)]
pub(in crate::verbs) struct CompletionQueue {
    pub(in crate::verbs) context: *mut Context,
}

#[repr(C)]
pub(in crate::verbs) struct QueuePair {
    pub(in crate::verbs) context: *mut Context,
    pub(in crate::verbs) user: *mut c_void,
    pub(in crate::verbs) domain: *mut Domain,
    pub(in crate::verbs) send_queue: *mut CompletionQueue,
    pub(in crate::verbs) receive_queue: *mut CompletionQueue,
    pub(in crate::verbs) shared_receive_queue: *mut c_void,
    pub(in crate::verbs) handle: u32,
    pub(in crate::verbs) number: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(in crate::verbs) struct QueuePairCapacity {
    pub(in crate::verbs) send_requests: u32,
    pub(in crate::verbs) receive_requests: u32,
    pub(in crate::verbs) send_segments: u32,
    pub(in crate::verbs) receive_segments: u32,
    pub(in crate::verbs) inline_bytes: u32,
}

#[repr(C)]
pub(in crate::verbs) struct QueuePairInit {
    pub(in crate::verbs) user: *mut c_void,
    pub(in crate::verbs) send_queue: *mut CompletionQueue,
    pub(in crate::verbs) receive_queue: *mut CompletionQueue,
    pub(in crate::verbs) shared_receive_queue: *mut c_void,
    pub(in crate::verbs) capacity: QueuePairCapacity,
    pub(in crate::verbs) kind: c_int,
    pub(in crate::verbs) signal_all: c_int,
}

#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
pub(in crate::verbs) struct GlobalRoute {
    pub(in crate::verbs) destination: [u8; 16],
    pub(in crate::verbs) flow_label: u32,
    pub(in crate::verbs) source_gid_index: u8,
    pub(in crate::verbs) hop_limit: u8,
    pub(in crate::verbs) traffic_class: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(in crate::verbs) struct AddressHandle {
    pub(in crate::verbs) route: GlobalRoute,
    pub(in crate::verbs) destination_lid: u16,
    pub(in crate::verbs) service_level: u8,
    pub(in crate::verbs) source_path_bits: u8,
    pub(in crate::verbs) static_rate: u8,
    pub(in crate::verbs) is_global: u8,
    pub(in crate::verbs) port: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(in crate::verbs) struct QueuePairAttributes {
    pub(in crate::verbs) state: c_int,
    pub(in crate::verbs) current_state: c_int,
    pub(in crate::verbs) path_mtu: c_int,
    pub(in crate::verbs) path_migration: c_int,
    pub(in crate::verbs) queue_key: u32,
    pub(in crate::verbs) receive_psn: u32,
    pub(in crate::verbs) send_psn: u32,
    pub(in crate::verbs) peer_number: u32,
    pub(in crate::verbs) access: c_uint,
    pub(in crate::verbs) capacity: QueuePairCapacity,
    pub(in crate::verbs) address: AddressHandle,
    pub(in crate::verbs) alternate_address: AddressHandle,
    pub(in crate::verbs) pkey_index: u16,
    pub(in crate::verbs) alternate_pkey_index: u16,
    pub(in crate::verbs) drained_notify: u8,
    pub(in crate::verbs) draining: u8,
    pub(in crate::verbs) reads_as_initiator: u8,
    pub(in crate::verbs) reads_as_target: u8,
    pub(in crate::verbs) rnr_timer: u8,
    pub(in crate::verbs) port: u8,
    pub(in crate::verbs) timeout: u8,
    pub(in crate::verbs) retries: u8,
    pub(in crate::verbs) rnr_retries: u8,
    pub(in crate::verbs) alternate_port: u8,
    pub(in crate::verbs) alternate_timeout: u8,
    pub(in crate::verbs) rate_limit: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(in crate::verbs) struct Segment {
    pub(in crate::verbs) address: u64,
    pub(in crate::verbs) bytes: u32,
    pub(in crate::verbs) local_key: u32,
}

/// A send work request; of the unions only the members for reliable connections.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::verbs) struct SendRequest {
    pub(in crate::verbs) id: u64,
    pub(in crate::verbs) next: *mut SendRequest,
    pub(in crate::verbs) segments: *mut Segment,
    pub(in crate::verbs) segment_count: c_int,
    pub(in crate::verbs) operation: c_int,
    pub(in crate::verbs) flags: c_uint,
    pub(in crate::verbs) immediate: u32,
    pub(in crate::verbs) remote_address: u64,
    pub(in crate::verbs) remote_key: u32,
    _unused: [u64; 9],
}

impl SendRequest {
    pub(in crate::verbs) fn zeroed() -> Self {
        SendRequest {
            id: 0,
            next: std::ptr::null_mut(),
            segments: std::ptr::null_mut(),
            segment_count: 0,
            operation: 0,
            flags: 0,
            immediate: 0,
            remote_address: 0,
            remote_key: 0,
            _unused: [0; 9],
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::verbs) struct ReceiveRequest {
    pub(in crate::verbs) id: u64,
    pub(in crate::verbs) next: *mut ReceiveRequest,
    pub(in crate::verbs) segments: *mut Segment,
    pub(in crate::verbs) segment_count: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(in crate::verbs) struct WorkCompletion {
    pub(in crate::verbs) id: u64,
    pub(in crate::verbs) status: c_int,
    pub(in crate::verbs) operation: c_int,
    pub(in crate::verbs) vendor_error: u32,
    pub(in crate::verbs) bytes: u32,
    pub(in crate::verbs) immediate: u32,
    pub(in crate::verbs) queue_pair: u32,
    pub(in crate::verbs) source_queue_pair: u32,
    pub(in crate::verbs) flags: c_uint,
    pub(in crate::verbs) pkey_index: u16,
    pub(in crate::verbs) source_lid: u16,
    pub(in crate::verbs) service_level: u8,
    pub(in crate::verbs) destination_path_bits: u8,
}

pub(in crate::verbs) const ACCESS_LOCAL_WRITE: c_int = 1;
pub(in crate::verbs) const ACCESS_REMOTE_WRITE: c_int = 1 << 1;
pub(in crate::verbs) const ACCESS_REMOTE_READ: c_int = 1 << 2;

pub(in crate::verbs) const QUEUE_PAIR_RELIABLE: c_int = 2;

pub(in crate::verbs) const STATE_INIT: c_int = 1;
pub(in crate::verbs) const STATE_READY_TO_RECEIVE: c_int = 2;
pub(in crate::verbs) const STATE_READY_TO_SEND: c_int = 3;
pub(in crate::verbs) const STATE_ERROR: c_int = 6;

pub(in crate::verbs) const ATTRIBUTE_STATE: c_int = 1;
pub(in crate::verbs) const ATTRIBUTE_ACCESS: c_int = 1 << 3;
pub(in crate::verbs) const ATTRIBUTE_PKEY_INDEX: c_int = 1 << 4;
pub(in crate::verbs) const ATTRIBUTE_PORT: c_int = 1 << 5;
pub(in crate::verbs) const ATTRIBUTE_ADDRESS: c_int = 1 << 7;
pub(in crate::verbs) const ATTRIBUTE_PATH_MTU: c_int = 1 << 8;
pub(in crate::verbs) const ATTRIBUTE_TIMEOUT: c_int = 1 << 9;
pub(in crate::verbs) const ATTRIBUTE_RETRIES: c_int = 1 << 10;
pub(in crate::verbs) const ATTRIBUTE_RNR_RETRIES: c_int = 1 << 11;
pub(in crate::verbs) const ATTRIBUTE_RECEIVE_PSN: c_int = 1 << 12;
pub(in crate::verbs) const ATTRIBUTE_READS_AS_INITIATOR: c_int = 1 << 13;
pub(in crate::verbs) const ATTRIBUTE_RNR_TIMER: c_int = 1 << 15;
pub(in crate::verbs) const ATTRIBUTE_SEND_PSN: c_int = 1 << 16;
pub(in crate::verbs) const ATTRIBUTE_READS_AS_TARGET: c_int = 1 << 17;
pub(in crate::verbs) const ATTRIBUTE_PEER_NUMBER: c_int = 1 << 20;

pub(in crate::verbs) const SEND_WRITE: c_int = 0;
pub(in crate::verbs) const SEND_MESSAGE: c_int = 2;
pub(in crate::verbs) const SEND_MESSAGE_WITH_IMMEDIATE: c_int = 3;
pub(in crate::verbs) const SEND_READ: c_int = 4;

pub(in crate::verbs) const FLAG_SIGNALED: c_uint = 1 << 1;

/// In a completion: the immediate is there.
pub(in crate::verbs) const COMPLETION_WITH_IMMEDIATE: c_uint = 1 << 1;
