//! The `server` binary: one hexkv node.

use std::{mem::ManuallyDrop, process::ExitCode};

use hexkv_client::console::{note, print};
use hexkv_server::{
    config,
    environment::Environment,
    logging, offline,
    run::{self, RunError},
    supervisor::{END_TIMEOUT, EXIT_FAILED, Supervisor},
};
use rustix::{fs::Mode, process::umask};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Freed pages go back after a second, by a thread of the allocator's own: a burst leaves no footprint.
#[allow(non_upper_case_globals)]
// SAFETY: the name is the allocator's own for its settings, read once before the first allocation.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static malloc_conf: &[u8] = b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

/// What this process creates is for its own user only: also the files that sled creates.
const UMASK: Mode = Mode::from_raw_mode(0o077);

fn main() -> ExitCode {
    umask(UMASK);
    let args: Vec<_> = std::env::args_os().collect();
    if let Some(code) = offline::dispatch(&args) {
        return code;
    }
    let (mut config, sources) = match config::Config::load(args, std::env::vars_os()) {
        Ok(loaded) => loaded,
        Err(e) => return e.report(),
    };
    let files = config::raise_fd_limit();
    let connections = files.connections(config.connections_max);
    if sources.print_requested() {
        print(&format!("{sources}{connections}"));
        return ExitCode::SUCCESS;
    }
    if let Err(e) = logging::init(config.log_format, &config.log_filter, &config.node_name.to_string()) {
        note(&format!("error: {e}"));
        return ExitCode::FAILURE;
    }
    if let Err(e) = files.check() {
        tracing::error!("{e}");
        return ExitCode::FAILURE;
    }
    for warning in config.warnings().iter().chain(&connections.warning()) {
        tracing::warn!("{warning}");
    }
    config.connections_max = connections.effective;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            tracing::error!(error = %e, "the async runtime did not start");
            return ExitCode::FAILURE;
        }
    };
    // Never dropped: that would wait for threads which may wait for a disk that hangs.
    let runtime = ManuallyDrop::new(runtime);
    let stop = CancellationToken::new();
    let supervisor = match Supervisor::start(stop.clone(), run::stop_timeout(&config)) {
        Ok(supervisor) => supervisor,
        Err(e) => {
            tracing::error!(error = %e, "signals cannot be watched");
            return ExitCode::FAILURE;
        }
    };
    let environment = Environment { apart: Some(supervisor.handle()), ..Environment::real() };
    let result = runtime.block_on(async {
        let Some(running) = run::start_until(environment, config, &stop).await? else { return Ok::<_, RunError>(()) };
        supervisor.serving();
        running.until(stop).await
    });
    // From here on nothing is waited for but this function's own end, and for that only for a bounded time.
    let code = if result.is_ok() { 0 } else { EXIT_FAILED };
    supervisor.end_within(END_TIMEOUT, code);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e}");
            ExitCode::FAILURE
        }
    }
}
