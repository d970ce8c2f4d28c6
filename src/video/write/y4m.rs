//! Y4M: raw planes with a one-line header, for pipes.

use super::Rate;
use super::colour::{Chroma, Planes, Space};
use crate::platform::signals::Remains;
use crate::video::Frame;
use crate::video::read::yuv::untagged;
use anyhow::{Context, Result};
use std::io::{BufWriter, Write};

pub struct Y4m<W: Write> {
    out: BufWriter<W>,
    planes: Planes,
    _remains: Remains,
}

const FAILED: &str = "cannot write to standard output";

impl<W: Write> Y4m<W> {
    /// 4:2:0 for even sizes, 4:4:4 for odd ones. The header has no word for the matrix, so it is the one that readers assume:
    /// BT.601 below high definition.
    pub fn create(out: W, width: usize, height: usize, rate: Rate) -> Result<Self> {
        let (chroma, name) = match (width % 2, height % 2) {
            (0, 0) => (Chroma::Quarter, "420jpeg"),
            _ => (Chroma::Full, "444"),
        };
        let mut out = BufWriter::with_capacity(1 << 18, out);
        let Rate { num, den } = rate;
        writeln!(out, "YUV4MPEG2 W{width} H{height} F{num}:{den} Ip A1:1 C{name} XCOLORRANGE=LIMITED")
            .context(FAILED)?;
        let space = Space::new(untagged(width, height), false, width, height);
        let _remains = Remains::set("the clip on standard output is cut off");
        Ok(Y4m { out, planes: Planes::new(width, height, chroma, space), _remains })
    }

    pub fn push(&mut self, frame: &Frame) -> Result<()> {
        self.planes.fill(frame);
        let Planes { y, u, v, .. } = &self.planes;
        [b"FRAME\n".as_slice(), y, u, v].into_iter().try_for_each(|part| self.out.write_all(part)).context(FAILED)
    }

    pub fn finish(mut self) -> Result<()> {
        self.out.flush().context(FAILED)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::patches;
    use super::*;

    fn written(width: usize, height: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut y4m = Y4m::create(&mut bytes, width, height, Rate::new(29.97)?)?;
        y4m.push(&patches(width, height, 0))?;
        y4m.push(&patches(width, height, 1))?;
        y4m.finish()?;
        Ok(bytes)
    }

    #[test]
    fn planes_after_a_line() -> Result<()> {
        let header = b"YUV4MPEG2 W16 H4 F30000:1001 Ip A1:1 C420jpeg XCOLORRANGE=LIMITED\nFRAME\n";
        let bytes = written(16, 4)?;
        assert!(bytes.starts_with(header));
        assert_eq!(bytes.len(), header.len() + 6 + 2 * (16 * 4 * 3 / 2));
        assert_eq!(bytes[header.len()], 81); // red, of BT.601
        assert_eq!(bytes[header.len() + 15], written(16, 4)?[header.len() + 14]);
        Ok(())
    }

    #[test]
    fn odd_sizes_keep_all_colour() -> Result<()> {
        let header = b"YUV4MPEG2 W17 H3 F30000:1001 Ip A1:1 C444 XCOLORRANGE=LIMITED\nFRAME\n";
        let bytes = written(17, 3)?;
        assert!(bytes.starts_with(header));
        assert_eq!(bytes.len(), header.len() + 6 + 2 * (17 * 3 * 3));
        Ok(())
    }

    /// What is written comes back in its colours.
    #[test]
    fn colours_read_back_below_and_in_high_definition() -> Result<()> {
        let path = std::env::temp_dir().join(format!("reel-y4m-{}.y4m", std::process::id()));
        for (width, height, red) in [(16, 4, 81), (1280, 720, 63)] {
            let bytes = written(width, height)?;
            let first = bytes.iter().enumerate().filter(|b| *b.1 == b'\n').nth(1).context("a frame")?.0 + 1;
            assert_eq!(bytes[first], red);
            std::fs::write(&path, &bytes)?;
            let frame = crate::video::read::open(&path)?.next()?.context("a frame")?.frame;
            std::fs::remove_file(&path)?;
            let worst = super::super::testing::worst(&frame.rgb, 3, width, height, 0);
            assert!(worst <= 2, "{width}x{height}: {worst}");
        }
        Ok(())
    }

    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_an_error() -> Result<()> {
        let mut y4m = Y4m::create(Closed, 6, 4, Rate::new(8.0)?)?;
        let _ = y4m.push(&patches(6, 4, 0));
        assert!(format!("{:#}", y4m.finish().expect_err("closed")).contains("standard output"));
        Ok(())
    }
}
