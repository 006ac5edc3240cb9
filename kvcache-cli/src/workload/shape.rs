//! `kvcache workload shape`.

use kvcache_workload::{Shape, sessions_at};

use super::{ReadArgs, SeedArgs, WorkloadError, made_by};

/// Gives the requests of a workload other times of arrival. Their order stays.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    read: ReadArgs,
    /// When they arrive: `poisson:RATE`, `constant:RATE`, `burst:LOW:HIGH:PERIOD:SHARE`, `step:RATE:SECONDS,...,RATE`,
    /// `sine:MEAN:AMPLITUDE:PERIOD`, `recorded`, `recorded*SPEED`, or `concurrency:COUNT` for no times and so many
    /// sessions that are served at a time.
    #[arg(long, value_name = "SHAPE")]
    rate: Shape,
    /// What the rate is of: of all requests, or of sessions, within which times stay as they are.
    #[arg(long, value_name = "WHAT", default_value = "requests")]
    of: Of,
    #[command(flatten)]
    seed: SeedArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Of {
    /// The next request arrives at the next time.
    Requests,
    /// The next session begins at the next time. Needs memory for all requests.
    Sessions,
}

pub(super) fn run(args: &Args) -> Result<String, WorkloadError> {
    let mut reader = args.read.open()?;
    let mut header = reader.header().cloned().unwrap_or_default();
    header.made_by = Some(match header.made_by.take() {
        Some(before) => format!("{before}; {}", made_by()),
        None => made_by(),
    });
    header.concurrency = None;
    let seed = args.seed.seed;
    match (&args.rate, args.of) {
        (Shape::Rate(rate), Of::Sessions) => {
            header.seed = Some(seed);
            let requests = sessions_at(rate, seed, &mut reader)?;
            args.seed.out.write(&header, requests.into_iter().map(Ok))?;
        }
        (shape, Of::Requests) => {
            match shape {
                Shape::Rate(_) => header.seed = Some(seed),
                Shape::Concurrency(count) => header.concurrency = Some(*count),
                Shape::Recorded { .. } => {}
            }
            args.seed.out.write(&header, shape.requests(&mut reader, seed))?;
        }
        (_, Of::Sessions) => return Err(WorkloadError::ShapeOfSessions),
    }
    args.read.say_what_was_left_out(&reader);
    Ok(String::new())
}
