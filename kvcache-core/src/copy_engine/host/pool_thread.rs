//! Places the calling thread: CPU affinity and niceness. Both are wishes; a refusal costs speed only.

/// Binds the calling thread to `cpus` (empty: leaves it alone) and sets its niceness.
#[cfg(target_os = "linux")]
pub(super) fn place(cpus: &[usize], nice: i32) {
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
    if nice != 0 {
        // SAFETY: takes numbers only; on Linux a thread id as `who` names that thread alone.
        let _ =
            unsafe { libc::setpriority(libc::PRIO_PROCESS, libc::gettid() as libc::id_t, nice.clamp(0, 19)) };
    }
}

/// Affinity and niceness of threads are not portable: elsewhere the thread stays as it is.
#[cfg(not(target_os = "linux"))]
pub(super) fn place(_cpus: &[usize], _nice: i32) {}
