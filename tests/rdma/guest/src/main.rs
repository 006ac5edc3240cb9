//! Checks against real verbs. Runs inside of the virtual machine that `tests/rdma/run_small_guest.sh` boots, and just as
//! well on a machine with a device: `cargo run -p rdma-guest`.
//!
//! `rdma-guest client ADDRESS PROCESS` runs the part that needs a server against one that is there, and kills it in the end.
//!
//! Prints a line for each check and a closing line; the exit status is 1 if a check failed, and 3 without RDMA.

mod bench;
mod checks;
mod devices;
mod ring;
mod serve;
mod store;

use std::process::ExitCode;

use checks::Checks;
use kvcache_rdma::verbs::conformance::RULES;
use kvcache_rdma::verbs::{PortWish, Rdma};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, port] = arguments.as_slice()
        && command.starts_with("serve")
    {
        let serve = if command == "serve" { serve::serve } else { serve::serve_cache };
        return match serve(port.parse().unwrap_or(0)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    if let [command, address, kind] = arguments.as_slice()
        && command == "bench"
    {
        let server = address.parse().map_err(|_| format!("{address} is no address"));
        return match server.and_then(|server| bench::bench(server, kind)) {
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
    let port = rdma.open(&PortWish::default()).map_err(|error| error.to_string());
    match (port, arguments.as_slice()) {
        (Err(error), _) => checks.run("a_port_opens", || Err(error)),
        (Ok(port), [command, address, process]) if command == "client" => {
            match (address.parse(), process.parse()) {
                (Ok(address), Ok(process)) => {
                    ring::check_foreign(&mut checks, &port, address);
                    store::check_foreign(&mut checks, &port, address, process);
                }
                _ => checks
                    .run("arguments", || Err(format!("{address} and {process} are no address and process"))),
            }
        }
        (Ok(port), _) => {
            devices::check_all(&mut checks, &rdma);
            println!("port {}", port.name());
            for rule in RULES {
                checks.run(rule.name, || (rule.check)(&port, &port));
            }
            store::check_all(&mut checks, &port);
            ring::check_all(&mut checks, &port);
        }
    }
    checks.finish()
}
