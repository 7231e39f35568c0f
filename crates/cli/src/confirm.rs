//! Questions before something is done that cannot simply be undone.

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::context::Context;
use crate::exit::{Complaint, Exit};

/// How often it is looked whether a question was interrupted.
const LOOK_EVERY: Duration = Duration::from_millis(100);

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
    if agreed(ctx, question, unattended)? { Ok(()) } else { Err(declined()) }
}

/// The same, for one question of several: whether it was answered by yes.
pub fn agreed(ctx: &Context, question: &str, unattended: Unattended) -> Result<bool> {
    if ctx.global.yes {
        return Ok(true);
    }
    if !can_ask(ctx) {
        let hint = match unattended {
            Unattended::Proceed => return Ok(true),
            Unattended::Refuse => "Look at it with `--dry-run`, then say `--yes`.",
            Unattended::RefuseUnseen => "Say `--yes` if that is what you want.",
        };
        let complaint = Complaint::usage("this needs to be confirmed, and nobody can be asked");
        return Err(complaint.hint(hint).into());
    }
    let answer = read(ctx, &format!("{question} [y/N] "))?;
    Ok(matches!(answer.to_lowercase().as_str(), "y" | "yes"))
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
        io::stderr().write_all(prompt.as_bytes()).context("ask")?;
        let line = || {
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line).map(|_| line)
        };
        unless(|| ctx.interrupt.is_requested(), line)
    })
}

/// An answer, unless it is over before there is one: then somebody has interrupted the question, and nobody waits for what
/// else is typed.
fn unless(
    is_over: impl Fn() -> bool,
    read: impl FnOnce() -> io::Result<String> + Send + 'static,
) -> Result<String> {
    let (answer, answered) = mpsc::sync_channel(1);
    // A read from a terminal cannot be broken off; the thread ends with the process.
    thread::spawn(move || answer.send(read()));
    loop {
        let line = answered.recv_timeout(LOOK_EVERY);
        if is_over() {
            return Err(Complaint::new(Exit::Interrupted, "interrupted").into());
        }
        match line {
            Ok(line) => return Ok(line.context("read the answer")?.trim().to_owned()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Complaint::failed("nobody answered").into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::exit_of;

    #[test]
    fn a_question_that_is_interrupted_waits_for_no_answer() {
        let never = || loop {
            thread::park();
        };
        assert_eq!(exit_of(&unless(|| true, never).unwrap_err()), Exit::Interrupted);
        let yes = || Ok("y\n".to_owned());
        assert_eq!(
            exit_of(&unless(|| true, yes).unwrap_err()),
            Exit::Interrupted,
            "no answer counts any more"
        );
        assert_eq!(unless(|| false, yes).unwrap(), "y");
    }
}
