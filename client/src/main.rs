//! Command line of hexkv.

mod cli;

use std::process::ExitCode;

use hexkv_client::console::VisibleFields;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    if let Some(group) = cli::guard::guarded() {
        return cli::guard::main(group);
    }
    let arguments = match cli::Arguments::from_process() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env()).with_writer(std::io::stderr);
    log.fmt_fields(VisibleFields).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return cli::Failure::local("the async runtime did not start")(error).report(),
    };
    // On this thread: a command that it starts is killed by the kernel when the thread ends that started it.
    match runtime.block_on(cli::run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
