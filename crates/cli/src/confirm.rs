//! Questions before something is done that cannot simply be undone.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context as _, Result};

use crate::context::Context;
use crate::exit::Complaint;

/// What happens where nobody can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unattended {
    /// Go on: the command line itself says clearly what is wanted.
    Proceed,
    /// Fail, and ask for `--yes` after a look with `--dry-run`, which the command has.
    Refuse,
    /// Fail, and ask for `--yes`.
    RefuseUnseen,
}

/// Whether somebody is there to be asked.
pub fn can_ask(ctx: &Context) -> bool {
    !ctx.global.json && io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a question that is answered by yes or no; no is the default. An error when it was answered by no.
pub fn confirm(ctx: &Context, question: &str, unattended: Unattended) -> Result<()> {
    if ctx.global.yes {
        return Ok(());
    }
    if !can_ask(ctx) {
        let hint = match unattended {
            Unattended::Proceed => return Ok(()),
            Unattended::Refuse => "Look at it with `--dry-run`, then say `--yes`.",
            Unattended::RefuseUnseen => "Say `--yes` if that is what you want.",
        };
        let complaint = Complaint::usage("this needs to be confirmed, and nobody can be asked");
        return Err(complaint.hint(hint).into());
    }
    let answer = read(ctx, &format!("{question} [y/N] "))?;
    if matches!(answer.to_lowercase().as_str(), "y" | "yes") { Ok(()) } else { Err(declined()) }
}

/// Asks to type a name, for what can never be undone.
pub fn confirm_by_name(ctx: &Context, question: &str, name: &str) -> Result<()> {
    if ctx.global.yes {
        return Ok(());
    }
    if !can_ask(ctx) {
        return confirm(ctx, question, Unattended::RefuseUnseen);
    }
    let answer = read(ctx, &format!("{question}\nType `{name}` to go on: "))?;
    if answer == name { Ok(()) } else { Err(declined()) }
}

fn declined() -> anyhow::Error {
    Complaint::failed("not confirmed; nothing was changed").into()
}

fn read(ctx: &Context, prompt: &str) -> Result<String> {
    ctx.printer.suspend(|| {
        let mut answer = String::new();
        io::stderr().write_all(prompt.as_bytes()).context("ask")?;
        io::stdin().lock().read_line(&mut answer).context("read the answer")?;
        Ok(answer.trim().to_owned())
    })
}
