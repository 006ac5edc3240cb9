//! Keeps background threads out of the engine's way: CPU affinity, batch scheduling, niceness.
//!
//! All of them are wishes; a refusal costs speed only.

/// Binds the calling thread to `cpus` (empty: leaves it where it may run) and makes it a batch thread of this niceness.
#[cfg(target_os = "linux")]
pub fn place(cpus: &[usize], nice: i32) {
    if !cpus.is_empty() {
        // SAFETY: `cpu_set_t` is a plain bit set for which all zeroes is the empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for &cpu in cpus.iter().filter(|&&cpu| cpu < libc::CPU_SETSIZE as usize) {
            // SAFETY: `set` is a valid set, and `cpu` lies within its size by the filter.
            unsafe { libc::CPU_SET(cpu, &mut set) };
        }
        // SAFETY: the pointer and size name `set`; pid 0 is the calling thread.
        let _ = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
    }
    // Batch threads do not preempt the thread that wakes them: `submit` returns before the copy starts.
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: `priority` is a valid parameter for this policy; pid 0 is the calling thread.
    let _ = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &priority) };
    if nice != 0 {
        // SAFETY: takes numbers only; on Linux a thread id as `who` names that thread alone.
        let _ =
            unsafe { libc::setpriority(libc::PRIO_PROCESS, libc::gettid() as libc::id_t, nice.clamp(0, 19)) };
    }
}

/// Affinity and niceness of threads are not portable: elsewhere the thread stays as it is.
#[cfg(not(target_os = "linux"))]
pub fn place(_cpus: &[usize], _nice: i32) {}
