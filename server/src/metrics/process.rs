//! This process, under the names that all Prometheus clients use.

use std::fmt;

use procfs::{WithCurrentSystemInfo as _, process::Process};

use super::page::Page;

/// Where `/proc` does not tell, the families are there without a sample.
pub(super) fn tell(page: &mut Page<'_>) -> fmt::Result {
    let process = Process::myself().inspect_err(|e| tracing::debug!(error = %e, "/proc does not tell")).ok();
    let stat = process.as_ref().and_then(|process| process.stat().ok());
    let ticks = procfs::ticks_per_second() as f64;
    page.counter_if(
        "process_cpu_seconds",
        "User and system CPU time",
        stat.as_ref().map(|stat| (stat.utime + stat.stime) as f64 / ticks),
    )?;
    page.gauge_if(
        "process_resident_memory_bytes",
        "Resident memory",
        stat.as_ref().map(|stat| stat.rss_bytes().get() as f64),
    )?;
    page.gauge_if("process_virtual_memory_bytes", "Virtual memory", stat.as_ref().map(|stat| stat.vsize as f64))?;
    page.gauge_if("process_threads", "Threads", stat.as_ref().map(|stat| stat.num_threads as f64))?;
    page.gauge_if(
        "process_open_fds",
        "Open file descriptors, connections included",
        process.as_ref().and_then(|process| process.fd_count().ok()).map(|count| count as f64),
    )?;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    page.gauge("process_max_fds", "Most file descriptors that may be open", limit.map_or(f64::INFINITY, |n| n as f64))?;
    let started = || Some(procfs::boot_time_secs().ok()? as f64 + stat.as_ref()?.starttime as f64 / ticks);
    page.gauge_if("process_start_time_seconds", "When the process started, in seconds since the Unix epoch", started())
}
