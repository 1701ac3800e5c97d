//! The `server` binary: one hexkv node.

use std::process::ExitCode;

use hexkv_server::{config, logging, offline, run};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Freed pages go back after a second, by a thread of the allocator's own: a burst leaves no footprint.
#[allow(non_upper_case_globals)]
// SAFETY: the name is the allocator's own for its settings, read once before the first allocation.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static malloc_conf: &[u8] = b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if let Some(code) = offline::dispatch(&args) {
        return code;
    }
    let (config, sources) = match config::Config::load(args, std::env::vars_os()) {
        Ok(loaded) => loaded,
        Err(e) => return e.report(),
    };
    if sources.print_requested() {
        print!("{sources}");
        return ExitCode::SUCCESS;
    }
    if let Err(e) = logging::init(config.log_format, &config.log_filter, &config.node_name.to_string()) {
        eprintln!("error: {e}");
        return ExitCode::FAILURE;
    }
    let files = config::raise_fd_limit().warning();
    for warning in config.warnings().iter().chain(&files) {
        tracing::warn!("{warning}");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            tracing::error!(error = %e, "the async runtime did not start");
            return ExitCode::FAILURE;
        }
    };
    let stop = CancellationToken::new();
    let result = runtime.block_on(async {
        watch_signals(stop.clone());
        run::run(config, stop).await
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// SIGTERM and SIGINT stop gracefully; a second one ends at once.
fn watch_signals(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::warn!("signals cannot be watched; only kill -9 ends this node");
        return;
    };
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if stop.is_cancelled() {
                tracing::warn!("second signal: ending without a graceful stop");
                std::process::exit(130);
            }
            stop.cancel();
        }
    });
}
