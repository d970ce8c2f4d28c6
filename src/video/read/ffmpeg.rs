//! What is not decoded here goes through the user's own `ffmpeg`, where there is one: as a child process with its
//! arguments given one by one (no shell), local files only, raw pixels back through a pipe. It turns pictures upright
//! itself.

use super::Source;
use super::talk::{Described, complaint, described, last_line};
use super::yuv::untagged;
use crate::video::Frame;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What `ffmpeg` says about a file.
pub struct Probe {
    pub width: usize,
    pub height: usize,
    pub about: Described,
    pub starts: Vec<f64>,
    pub end: Option<f64>,
    /// Its clock, in seconds.
    pub tick: f64,
    /// The first thing that it complained about while it decoded.
    pub complaint: Option<String>,
    passthrough: Passthrough,
}

/// How an `ffmpeg` is told to give every frame once, with its own time, and of its own size. The options were renamed (5.1,
/// 6.1), and the old forms are gone from new ones.
type Passthrough = &'static [&'static str];

const PASSTHROUGH: [Passthrough; 3] = [
    &["-fps_mode", "passthrough", "-enc_time_base", "demux", "-noautoscale"],
    &["-fps_mode", "passthrough", "-enc_time_base", "-1", "-noautoscale"],
    &["-vsync", "0", "-enc_time_base", "-1"],
];

/// How long an `ffmpeg` may give nothing while it is waited for. It gives a line or a picture for every frame that it decodes, or
/// one in [`SIGN_EVERY`]: a frame of 8K takes it seconds on an old machine, and a disk that has to wake up or a network half a
/// minute more. What is silent for longer has hung.
const SILENCE: Duration = Duration::from_secs(120);

/// While it decodes frames that are not wanted it gives one picture in so many, as a sign that it is at work.
const SIGN_EVERY: usize = 64;

/// Bytes that are taken out of its pipe at once, and how often before they are asked for.
const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 16;

/// What its talk may fill; the rest is read and dropped, so that it never waits for us.
const MOST_TALK: usize = 256 << 10;

/// A child that ends with us, and what it says on standard error.
struct Running {
    child: Child,
    reader: JoinHandle<()>,
    talk: Arc<Mutex<Vec<u8>>>,
}

/// What comes out of a pipe, which is not waited for without end.
struct Output {
    blocks: Receiver<std::io::Result<Vec<u8>>>,
    block: Vec<u8>,
    /// What of the block has been read.
    read: usize,
    silence: Duration,
}

impl Output {
    /// - `silence`: how long nothing may come while it is waited for.
    fn new(mut pipe: impl Read + Send + 'static, silence: Duration) -> std::io::Result<Output> {
        let (send, blocks) = sync_channel(BLOCKS);
        std::thread::Builder::new().spawn(move || {
            loop {
                let mut block = vec![0; BLOCK];
                let result = pipe.read(&mut block).map(|n| {
                    block.truncate(n);
                    block
                });
                let last = !result.as_ref().is_ok_and(|block| !block.is_empty());
                let again = result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Interrupted);
                // without a receiver nobody wants more; the pipe closes
                if !again && (send.send(result).is_err() || last) {
                    break;
                }
            }
        })?;
        Ok(Output { blocks, block: Vec::new(), read: 0, silence })
    }
}

impl Read for Output {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        if self.read == self.block.len() {
            self.block = match self.blocks.recv_timeout(self.silence) {
                Ok(block) => block?,
                Err(RecvTimeoutError::Disconnected) => return Ok(0), // the end was read before
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = self.silence.as_secs_f64();
                    let said = format!("`ffmpeg` gave nothing for {seconds} seconds, and was ended");
                    return Err(std::io::Error::new(ErrorKind::TimedOut, said));
                }
            };
            self.read = 0;
        }
        let n = to.len().min(self.block.len() - self.read);
        to[..n].copy_from_slice(&self.block[self.read..][..n]);
        self.read += n;
        Ok(n)
    }
}

/// What to do about an `ffmpeg` that hangs.
fn hangs(error: &std::io::Error) -> Result<()> {
    ensure!(
        error.kind() != ErrorKind::TimedOut,
        "{error}\n  fix: see whether `ffmpeg -i IN -f null -` gets through the file, or convert it on another machine"
    );
    Ok(())
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// None where there is no `ffmpeg`.
    /// - `video`: which of the file's picture streams.
    fn start(
        path: &Path,
        video: usize,
        mode: Passthrough,
        level: &str,
        output: &[&str],
    ) -> Result<Option<(Running, Output)>> {
        let mut input = OsString::from("file:");
        input.push(path);
        let map = format!("0:V:{video}");
        let child = Command::new("ffmpeg")
            .args([
                "-hide_banner",
                "-nostdin",
                "-nostats",
                "-loglevel",
                level,
                "-protocol_whitelist",
                "file,pipe",
                "-max_pixels",
                &super::MOST_PIXELS.to_string(),
                "-i",
            ])
            .arg(input)
            .args(["-map", &map, "-an", "-sn", "-dn"])
            .args(mode)
            .args(output)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("cannot start `ffmpeg`"),
        };
        let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
            bail!("`ffmpeg` has no pipes")
        };
        let talk = Arc::new(Mutex::new(Vec::new()));
        let kept = talk.clone();
        let reader = std::thread::Builder::new().spawn(move || {
            let mut block = [0; 4096];
            while let Ok(n @ 1..) = stderr.read(&mut block) {
                let Ok(mut kept) = kept.lock() else { break };
                let room = MOST_TALK.saturating_sub(kept.len()).min(n);
                kept.extend_from_slice(&block[..room]);
            }
        });
        let output = reader.and_then(|reader| Ok((reader, Output::new(stdout, SILENCE)?)));
        let (reader, output) = match output {
            Ok(both) => both,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error).context("cannot read what `ffmpeg` says");
            }
        };
        Ok(Some((Running { child, reader, talk }, output)))
    }

    /// Waits for the end, which is not far once its output has ended. Returns whether it went well, and what was said.
    fn finish(&mut self) -> Result<(bool, String)> {
        let fine = within(SILENCE, || self.child.try_wait().transpose()).transpose()?.is_some_and(|end| end.success());
        let _ = self.child.kill(); // one that does not end
        // a child of its own may still hold the pipe
        within(LAST_WORDS, || self.reader.is_finished().then_some(()));
        let talk = self.talk.lock().map(|talk| String::from_utf8_lossy(&talk).into_owned()).unwrap_or_default();
        Ok((fine, talk))
    }
}

/// How long its last words are waited for once it has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Asks again and again until there is an answer; `None` where none comes in time.
fn within<T>(most: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        match ask() {
            None if begun.elapsed() < most => std::thread::sleep(pause),
            answer => return answer,
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Decodes the file once to count its frames, exactly, and to find their times.
/// - None where there is no `ffmpeg`.
pub fn probe(path: &Path, video: usize) -> Result<Option<Probe>> {
    for mode in PASSTHROUGH {
        // `framecrc` prints one line a frame: stream, decoding time, time, duration, size, checksum.
        // Each is to come as soon as it is decoded: see `SILENCE`.
        let output = ["-flush_packets", "1", "-f", "framecrc", "-"];
        let started = Running::start(path, video, mode, "info", &output)?;
        let Some((mut running, stdout)) = started else { return Ok(None) };
        let listing = Listing::read(stdout)?;
        let (fine, talk) = running.finish()?;
        let count = listing.times.len();
        if !fine && count == 0 && (talk.contains("fps_mode") || talk.contains("time base")) {
            continue;
        }
        ensure!(fine || count > 0, "`ffmpeg` cannot read it either: {}", last_line(&talk));
        ensure!(count > 0, "there are no frames in it");
        let (width, height) = listing.size.context("`ffmpeg` does not say how large it is")?;
        super::check_size(width, height)?;
        if let Some(frame) = listing.resized {
            bail!("its size changes at frame {frame}\n  fix: {}", super::shape::one_size(width, height));
        }
        let first = listing.times[0].0;
        let seconds = |ticks: i64| (ticks - first) as f64 * listing.tick;
        let end = listing.times.last().filter(|last| last.1 > 0).map(|last| seconds(last.0.saturating_add(last.1)));
        return Ok(Some(Probe {
            width,
            height,
            about: described(&talk),
            starts: listing.times.iter().map(|&(start, _)| seconds(start)).collect(),
            end,
            tick: listing.tick,
            complaint: complaint(&talk),
            passthrough: mode,
        }));
    }
    bail!("this `ffmpeg` is too old")
}

#[derive(Default)]
struct Listing {
    size: Option<(usize, usize)>,
    tick: f64,
    /// Start and duration, in ticks.
    times: Vec<(i64, i64)>,
    /// Bytes of a frame, and the first frame that has another number of them.
    bytes: Option<i64>,
    resized: Option<usize>,
}

/// Frames that are listed: a day and a half at 30 a second.
const MOST_FRAMES: usize = 4_000_000;

impl Listing {
    fn read(listing: impl Read) -> Result<Listing> {
        let mut found = Listing { tick: 1.0, ..Listing::default() };
        for line in BufReader::new(listing).lines() {
            let line = line.or_else(|error| hangs(&error).and_then(|()| Err(error.into())))?;
            found.line(&line);
            ensure!(found.times.len() <= MOST_FRAMES, "it holds more than {MOST_FRAMES} frames");
        }
        Ok(found)
    }

    fn line(&mut self, line: &str) {
        let pair = |text: &str, by: char| -> Option<(u64, u64)> {
            let (a, b) = text.trim().split_once(by)?;
            Some((a.parse().ok()?, b.parse().ok()?))
        };
        if let Some(text) = line.strip_prefix("#tb 0:") {
            self.tick = pair(text, '/').filter(|tb| tb.1 > 0).map_or(1.0, |(num, den)| num as f64 / den as f64);
        } else if let Some(text) = line.strip_prefix("#dimensions 0:") {
            self.size = pair(text, 'x').map(|(w, h)| (w as usize, h as usize));
        } else if !line.starts_with('#') {
            let mut numbers = line.split(',').skip(2).map(|text| text.trim().parse::<i64>());
            if let (Some(Ok(time)), Some(Ok(duration)), Some(Ok(bytes))) =
                (numbers.next(), numbers.next(), numbers.next())
            {
                if *self.bytes.get_or_insert(bytes) != bytes {
                    self.resized.get_or_insert(self.times.len());
                }
                self.times.push((time, duration));
            }
        }
    }
}

/// Frames through a pipe. The child starts with the first one that is wanted.
pub struct Piped {
    path: PathBuf,
    video: usize,
    passthrough: Passthrough,
    width: usize,
    height: usize,
    tagged: bool,
    interlaced: bool,
    frames: usize,
    at: usize,
    running: Option<(Running, Output)>,
}

impl Piped {
    /// - `at`: the first frame that is wanted.
    pub fn new(path: &Path, video: usize, probe: &Probe, at: usize) -> Piped {
        Piped {
            path: PathBuf::from(path),
            video,
            passthrough: probe.passthrough,
            width: probe.width,
            height: probe.height,
            tagged: probe.about.tagged,
            interlaced: probe.about.interlaced,
            frames: probe.starts.len(),
            at,
            running: None,
        }
    }

    fn start(&mut self) -> Result<(Running, Output)> {
        let mut filters = Vec::new();
        if self.interlaced {
            filters.push("bwdif=mode=send_frame:deint=interlaced".to_string());
        }
        filters.push(format!("select='gte(n,{})+not(mod(n,{SIGN_EVERY}))'", self.at));
        // Without a tag `ffmpeg` takes BT.601 for any size.
        if untagged(self.width, self.height) == 1 && !self.tagged {
            filters.push("scale=in_color_matrix=bt709".to_string());
        }
        let filters = filters.join(",");
        let output = ["-vf", &filters, "-flush_packets", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"];
        let started = Running::start(&self.path, self.video, self.passthrough, "error", &output)?;
        let (running, mut output) = started.context("there is no `ffmpeg`")?;
        let signs = self.at.div_ceil(SIGN_EVERY) as u64;
        let bytes = signs * (self.width * self.height * 3) as u64;
        match std::io::copy(&mut (&mut output).take(bytes), &mut std::io::sink()) {
            Ok(_) => Ok((running, output)), // what is missing is missed at the next frame
            Err(error) => hangs(&error).and_then(|()| Err(error.into())),
        }
    }
}

impl Source for Piped {
    fn next(&mut self) -> Result<Option<Frame>> {
        if self.at >= self.frames {
            self.running = None;
            return Ok(None);
        }
        let (mut running, mut stdout) = match self.running.take() {
            Some(running) => running,
            None => self.start()?,
        };
        let mut rgb = vec![0; self.width * self.height * 3];
        if let Err(error) = stdout.read_exact(&mut rgb) {
            hangs(&error)?;
            drop(stdout);
            let (_, talk) = running.finish()?;
            bail!("`ffmpeg` gave no frame {}: {}", self.at, last_line(&talk));
        }
        self.running = Some((running, stdout));
        self.at += 1;
        Ok(Some(Frame { width: self.width, height: self.height, rgb }))
    }

    fn skip_to(&mut self, frame: usize) -> Result<()> {
        if frame != self.at {
            (self.running, self.at) = (None, frame);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn one_that_hangs_is_not_waited_for() -> Result<()> {
        let mut child = Command::new("sh").args(["-c", "echo abc; exec sleep 600"]).stdout(Stdio::piped()).spawn()?;
        let mut output = Output::new(child.stdout.take().context("a pipe")?, Duration::from_millis(300))?;
        let mut bytes = [0; 4];
        output.read_exact(&mut bytes)?;
        assert_eq!(&bytes, b"abc\n");
        let error = output.read(&mut bytes).err().context("it is waited for")?;
        child.kill()?;
        child.wait()?;
        let error = hangs(&error).err().context("it hangs")?.to_string();
        assert!(error.contains("gave nothing for 0.3 seconds") && error.contains("fix: "), "{error}");
        // what ends is no hang
        let mut whole = Vec::new();
        Output::new(&b"all of it"[..], Duration::from_secs(9))?.read_to_end(&mut whole)?;
        assert_eq!(whole, b"all of it");
        assert_eq!(within(Duration::from_millis(5), || None::<()>), None);
        Ok(())
    }

    #[test]
    fn its_list_is_understood() -> Result<()> {
        let text = "#software: x\n#tb 0: 1/30\n#codec_id 0: rawvideo\n#dimensions 0: 64x48\n\
                    0,  0,  2,  1, 4608, 0xc0ffee\n0,  1,  4,  3, 4608, 0x1\n";
        let listing = Listing::read(text.as_bytes())?;
        assert_eq!((listing.size, listing.times), (Some((64, 48)), vec![(2, 1), (4, 3)]));
        assert_eq!(listing.tick, 1.0 / 30.0);
        let text = "0, 0, 0, 1, 4608, 0x1\n0, 1, 1, 1, 4608, 0x1\n0, 2, 2, 1, 9216, 0x1\n0, 3, 3, 1, 4608, 0x1\n";
        assert_eq!(Listing::read(text.as_bytes())?.resized, Some(2));
        assert_eq!(Listing::read(&b"nonsense\n,,,,\n#tb 0: 1/0\n"[..])?.times, []);
        Ok(())
    }
}
