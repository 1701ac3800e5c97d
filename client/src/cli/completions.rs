//! completions: what shells know of this command line.

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::generate;
use clap_complete::shells::{Bash, Fish, Zsh};

use super::{Failure, output};

/// Shells that completions are written for.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  client completions bash > ~/.local/share/bash-completion/completions/client
  client completions zsh > ~/.zfunc/_client    # with fpath+=(~/.zfunc) before compinit in ~/.zshrc
  client completions fish > ~/.config/fish/completions/client.fish")]
pub struct Arguments {
    /// The shell that they are for
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes the completions to stdout.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut command = super::Arguments::command();
    let mut script = Vec::new();
    match arguments.shell {
        Shell::Bash => generate(Bash, &mut command, "client", &mut script),
        Shell::Zsh => generate(Zsh, &mut command, "client", &mut script),
        Shell::Fish => generate(Fish, &mut command, "client", &mut script),
    }
    output::bytes(&script)
}
