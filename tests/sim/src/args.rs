//! What to do, from the command line.

/// How to call it.
pub(crate) const USAGE: &str = "\
keepwell-sim [--seeds N] [--from S] [--jobs J] [--first]   many worlds; --first ends with the first failure
keepwell-sim --seed S [--trace]                            one world, the same every time; --trace shows all of it
keepwell-sim --directed FAULT                              the world that was written by hand for a planted fault
keepwell-sim --planted [--seeds N] [--only FAULT]           which planted faults are found, and by which seed";

/// The command line.
#[derive(Debug, Clone)]
pub(crate) struct Args {
    pub seeds: u64,
    pub from: u64,
    pub jobs: usize,
    /// End with the first failure.
    pub first: bool,
    pub seed: Option<u64>,
    /// Plants faults.
    pub planted: bool,
    /// Only this one.
    pub only: Option<String>,
    /// The directed world for this fault.
    pub directed: Option<String>,
    pub trace: bool,
    /// In this very process.
    pub here: bool,
}

impl Args {
    pub fn parse(args: impl Iterator<Item = String>) -> Result<Self, String> {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut parsed = Self {
            seeds: 100,
            from: 1,
            jobs,
            first: false,
            seed: None,
            planted: false,
            only: None,
            directed: None,
            trace: false,
            here: false,
        };
        let mut args = args;
        while let Some(arg) = args.next() {
            let mut number = || {
                let value = args.next().ok_or_else(|| format!("`{arg}` needs a number"))?;
                value.parse::<u64>().map_err(|_| format!("`{value}` is not a number"))
            };
            match arg.as_str() {
                "--seeds" => parsed.seeds = number()?,
                "--from" => parsed.from = number()?,
                "--jobs" => parsed.jobs = usize::try_from(number()?.max(1)).map_err(|e| e.to_string())?,
                "--seed" => parsed.seed = Some(number()?),
                "--planted" => parsed.planted = true,
                "--only" => parsed.only = args.next(),
                "--first" => parsed.first = true,
                "--directed" => {
                    let fault = args.next().ok_or("`--directed` needs the name of a fault")?;
                    if !keepwell_sim::DIRECTED.contains(&fault.as_str()) {
                        return Err(format!(
                            "there are directed worlds for {}",
                            keepwell_sim::DIRECTED.join(", ")
                        ));
                    }
                    parsed.directed = Some(fault);
                }
                "--trace" => parsed.trace = true,
                "--here" => parsed.here = true,
                _ => return Err(format!("`{arg}` is not an option")),
            }
        }
        Ok(parsed)
    }
}
