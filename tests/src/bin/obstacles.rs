//! Makes each obstacle that BPF meets in real life, and sees that ifmon finds it, names it, and
//! steps down.
//!
//! Run as root in an emulated kernel where the BPF backends work; prints a line for each obstacle
//! and ends with the counts. The obstacles: what a process may not do, what a host does not show,
//! what a kernel does not have.

use std::process::ExitCode;

use tests::obstacle::{self, Result};

fn main() -> ExitCode {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let (mut passed, mut failed, mut left_out) = (0, 0, 0);
    for obstacle in obstacle::ALL {
        if !obstacle.name.contains(&filter) {
            continue;
        }
        match (obstacle.meet)() {
            Result::Passed => {
                passed += 1;
                println!("ok        {}", obstacle.name);
            }
            Result::LeftOut(why) => {
                left_out += 1;
                println!("left out  {}: {why}", obstacle.name);
            }
            Result::Failed(error) => {
                failed += 1;
                println!("FAILED    {}: {error:#}", obstacle.name);
            }
        }
    }
    println!("{passed} passed, {failed} failed, {left_out} skipped");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
