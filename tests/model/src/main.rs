//! `keepwell-model [--size small|large|crowd] [--scenario <name>] [--without <rule>] [--matrix | --rules]`:
//! searches the scenarios and prints state counts and loss traces; `--matrix` tries every scenario without each rule,
//! `--rules` prints the table of `docs/pruning.md`. Exit status 1 if a scenario with all rules in force is not safe.

use std::process::ExitCode;
use std::time::Instant;

use keepwell_model::evidence::{evidence, search_without};
use keepwell_model::explore::{Outcome, Verdict};
use keepwell_model::model::{Model, Step};
use keepwell_model::rules::Rule;
use keepwell_model::scenarios::{Size, all};

const LIMIT_STATES: usize = 60_000_000;

struct Options {
    size: Size,
    scenario: Option<String>,
    without: Vec<Rule>,
    matrix: bool,
    rules: bool,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let wanted = |model: &Model| options.scenario.as_deref().is_none_or(|name| name == model.name);
    let models: Vec<Model> = all(options.size).into_iter().filter(wanted).collect();
    if options.rules {
        Rule::ALL.iter().for_each(|rule| print_rule(*rule));
        return ExitCode::SUCCESS;
    }
    if options.matrix {
        models.iter().for_each(print_matrix);
        return ExitCode::SUCCESS;
    }
    let mut sound = true;
    for model in models {
        let model = options.without.iter().fold(model, |model, rule| model.without(*rule));
        let started = Instant::now();
        let outcome = model.check(LIMIT_STATES);
        println!(
            "{:16} {:>10} states {:>8.1?}  {}",
            model.name,
            outcome.states,
            started.elapsed(),
            summary(&outcome)
        );
        if let Verdict::Broken { trace, complaint } = &outcome.verdict {
            trace.iter().enumerate().for_each(|(n, step)| println!("    {:2}. {step}", n + 1));
            println!("    {complaint}");
        }
        sound &= outcome.is_safe();
    }
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_rule(rule: Rule) {
    let found = evidence(rule);
    let absent: Vec<Rule> = found.covered_by.iter().copied().chain([rule]).collect();
    let steps = search_without(rule, &absent).and_then(|outcome| outcome.loss_len());
    let steps = steps.map_or("none".into(), |steps| steps.to_string());
    let others: Vec<&str> = found.covered_by.iter().map(|rule| rule.name()).collect();
    println!("| {} | {} | {steps} | {} |", rule.name(), found.scenario, others.join(", "));
}

fn print_matrix(model: &Model) {
    for rule in Rule::ALL {
        let outcome = model.without(*rule).check(LIMIT_STATES);
        if !outcome.is_safe() {
            println!(
                "{:16} without {:36} {:>9} states  {}",
                model.name,
                rule.name(),
                outcome.states,
                summary(&outcome)
            );
        }
    }
}

fn summary(outcome: &Outcome<Step>) -> String {
    match &outcome.verdict {
        Verdict::Safe => "safe".into(),
        Verdict::Broken { trace, .. } => format!("BROKEN in {} steps", trace.len()),
        Verdict::Limit => "limit reached, nothing proven".into(),
    }
}

fn parse(args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options =
        Options { size: Size::Small, scenario: None, without: Vec::new(), matrix: false, rules: false };
    let mut args = args;
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("`{arg}` needs a value"));
        match arg.as_str() {
            "--matrix" => options.matrix = true,
            "--rules" => options.rules = true,
            "--size" => options.size = size(&value()?)?,
            "--scenario" => options.scenario = Some(value()?),
            "--without" => options.without.push(rule(&value()?)?),
            _ => return Err(format!("unknown option `{arg}`")),
        }
    }
    Ok(options)
}

fn size(text: &str) -> Result<Size, String> {
    match text {
        "small" => Ok(Size::Small),
        "large" => Ok(Size::Large),
        "crowd" => Ok(Size::Crowd),
        _ => Err(format!("`{text}` is not a size; use small, large or crowd")),
    }
}

fn rule(text: &str) -> Result<Rule, String> {
    let found = Rule::ALL.iter().find(|rule| rule.name() == text);
    found.copied().ok_or_else(|| {
        let names: Vec<&str> = Rule::ALL.iter().map(|rule| rule.name()).collect();
        format!("no rule `{text}`; the rules are: {}", names.join(", "))
    })
}
