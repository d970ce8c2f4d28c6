//! The threads that networks are computed with.

use rayon::{ThreadBuilder, ThreadPoolBuilder};
use std::sync::mpsc::{Receiver, Sender, channel};

/// Threads for each core, at most: more only wait for each other (1000 on two cores make a short clip 200 times slower).
const MOST_PER_CORE: usize = 4;
/// Where the system gives fewer threads than are asked for, so many are left for bars, pipes and signals.
const SPARE: usize = 2;

/// Starts the threads; for the beginning of the program, and once.
/// - `asked`: how many; `None`: one for each core that this process may use.
/// - Returns one line where there are fewer.
pub fn start(asked: Option<usize>) -> Result<Option<String>, rayon::ThreadPoolBuildError> {
    let cores = cores();
    let count = asked.unwrap_or(cores).clamp(1, MOST_PER_CORE * cores);
    let mut ready = ready(count);
    if ready.len() < count {
        ready.truncate(ready.len().saturating_sub(SPARE));
    }
    let got = ready.len().max(1);
    let remark = match asked {
        _ if got < count => {
            Some(format!("the system gives no more threads (`ulimit -u`, or a container's limit): {got} of {count}"))
        }
        Some(asked) if count < asked => {
            Some(format!("--threads {asked}: {count} do as much on {cores} cores, and are used"))
        }
        _ => None,
    };
    if ready.is_empty() {
        ThreadPoolBuilder::new().num_threads(1).use_current_thread().build_global()?;
        return Ok(remark);
    }
    let hand_over = |thread: ThreadBuilder| -> std::io::Result<()> {
        let give = ready.pop().ok_or(std::io::ErrorKind::OutOfMemory)?;
        give.send(thread).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    };
    ThreadPoolBuilder::new().num_threads(got).spawn_handler(hand_over).build_global()?;
    Ok(remark)
}

/// Returns the cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Tells whether one more thread can be had, for what would end the program without one.
pub fn can_have_one() -> bool {
    std::thread::Builder::new().spawn(|| {}).is_ok_and(|thread| thread.join().is_ok())
}

/// Starts up to `count` threads that wait for what to run. The pool is built of these: it cannot be built a second time where its own
/// attempt fails half-way.
fn ready(count: usize) -> Vec<Sender<ThreadBuilder>> {
    let begin = |_| {
        let (give, take): (_, Receiver<ThreadBuilder>) = channel();
        let thread = std::thread::Builder::new().spawn(move || {
            if let Ok(thread) = take.recv() {
                thread.run()
            }
        });
        thread.ok().map(|_| give)
    };
    (0..count).map_while(begin).collect()
}
