//! Checks against real verbs. Runs inside of the virtual machine that `tests/rdma/run_small_guest.sh` boots, and just as
//! well on a machine with a device: `cargo run -p rdma-guest`.
//!
//! Prints a line for each check and a closing line; the exit status is 1 if a check failed, and 3 without RDMA.

mod checks;
mod devices;
mod serve;
mod store;

use std::process::ExitCode;

use checks::Checks;
use kvcache_rdma::verbs::conformance::RULES;
use kvcache_rdma::verbs::{PortWish, Rdma};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, port] = arguments.as_slice()
        && command == "serve"
    {
        return match serve::serve(port.parse().unwrap_or(0)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let rdma = match Rdma::load() {
        Ok(rdma) => rdma,
        Err(unavailable) => {
            println!("{unavailable}");
            return ExitCode::from(3);
        }
    };
    let mut checks = Checks::default();
    devices::check_all(&mut checks, &rdma);
    match rdma.open(&PortWish::default()) {
        Err(error) => checks.run("a_port_opens", || Err(error.to_string())),
        Ok(port) => {
            println!("port {}", port.name());
            for rule in RULES {
                checks.run(rule.name, || (rule.check)(&port, &port));
            }
            store::check_all(&mut checks, &port);
        }
    }
    checks.finish()
}
