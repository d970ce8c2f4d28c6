//! The markers of a JPEG file: what its decoder passes over in silence.
//! Source: ITU-T T.81, annex B.

/// What is known of a file before it is decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outline {
    /// Bytes of coefficients that are in memory for each pixel (progressive files).
    pub coefficients: f64,
    /// Passes over the picture.
    pub scans: usize,
    /// Where the marker of the end is; none where the file ends before.
    pub end: Option<usize>,
}

const END: u8 = 0xD9;

/// Goes from marker to marker.
pub fn outline(bytes: &[u8]) -> Outline {
    let mut outline = Outline::default();
    let mut at = 2;
    while let Some(step) = bytes.get(at..).and_then(|rest| rest.iter().position(|&byte| byte == 0xFF)) {
        at += step + 1;
        let Some(&marker) = bytes.get(at) else { break };
        match marker {
            0xFF => continue, // fill
            END => {
                outline.end = Some(at - 1);
                break;
            }
            0x00 | 0x01 | 0xD0..=0xD8 => at += 1, // coded data, and markers without a body
            _ => {
                let Some(&[high, low]) = bytes.get(at + 1..at + 3) else { break };
                let size = usize::from(u16::from_be_bytes([high, low]));
                let body = bytes.get(at + 3..).unwrap_or_default();
                match marker {
                    0xC2 => outline.coefficients = coefficients(body),
                    0xDA => outline.scans += 1,
                    _ => {}
                }
                at += 1 + size;
            }
        }
    }
    outline
}

/// Two bytes for each sample of each component, which may have fewer samples than pixels.
fn coefficients(frame: &[u8]) -> f64 {
    let components = frame.get(6..).unwrap_or_default().as_chunks::<3>().0;
    let components = &components[..components.len().min(frame.get(5).map_or(0, |&n| n.into()))];
    let samples = |component: &[u8; 3]| f64::from(component[1] >> 4) * f64::from(component[1] & 15);
    let most = components.iter().map(samples).fold(1.0, f64::max);
    components.iter().map(|component| 2.0 * samples(component) / most).sum()
}

/// The file with other bytes where it ends, and the marker of the end behind them.
pub fn continued(bytes: &[u8], outline: Outline, filler: u8) -> Vec<u8> {
    let padding = || bytes.iter().rev().take_while(|&&byte| matches!(byte, 0 | 0xFF)).count(); // of a cut download
    let end = outline.end.unwrap_or_else(|| bytes.len() - padding());
    let mut file = bytes[..end].to_vec();
    file.resize(end + 4096, filler);
    file.extend([0xFF, END]);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found() {
        let baseline = b"\xff\xd8\xff\xe0\x00\x04\xff\xd9\xff\xc0\x00\x0b\x08\0\x10\0\x10\x01\x01\x11\0\
            \xff\xda\x00\x02ab\xff\x00cd\xff\xd0ef\xff\xd9";
        let outline = super::outline(baseline);
        assert_eq!((outline.scans, outline.end, outline.coefficients), (1, Some(baseline.len() - 2), 0.0));
        assert_eq!(super::outline(&baseline[..baseline.len() - 2]).end, None);
        let frame = b"\x08\0\x10\0\x10\x03\x01\x22\0\x02\x11\0\x03\x11\0\xff\xda";
        assert_eq!(coefficients(frame), 3.0);
        assert_eq!(super::outline(b""), Outline::default());
        assert_eq!(continued(b"\xff\xd8ab\0\0", Outline::default(), 7)[2..6], *b"ab\x07\x07");
    }
}
