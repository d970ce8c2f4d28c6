//! What a file is, by how it begins. Its name says nothing.

/// - `Foreign`: a film in a container that is not read here, by its name.
/// - `Picture`: a still of a kind that is not read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Png,
    Jpeg,
    Gif,
    Webp,
    Bmp,
    Y4m,
    Mp4,
    Foreign(&'static str),
    Picture(&'static str),
    /// Something else that files which should be pictures often are.
    Other(&'static str),
    Unknown,
}

/// Bytes that are looked at.
pub const HEAD: usize = 4096;

/// - `head`: the file's first bytes, up to `HEAD` of them.
pub fn kind(head: &[u8]) -> Kind {
    let at = |i: usize, bytes: &[u8]| head.get(i..).is_some_and(|rest| rest.starts_with(bytes));
    let any = |i: usize, choices: &[&[u8]]| choices.iter().any(|bytes| at(i, bytes));
    match () {
        _ if at(0, b"\x89PNG\r\n\x1a\n") => Kind::Png,
        _ if at(0, b"\xff\xd8\xff") => Kind::Jpeg,
        _ if any(0, &[b"GIF87a", b"GIF89a"]) => Kind::Gif,
        _ if at(0, b"RIFF") && at(8, b"WEBP") => Kind::Webp,
        _ if at(0, b"YUV4MPEG2") => Kind::Y4m,
        _ if at(4, b"ftyp") && any(8, &[b"avif", b"avis"]) => Kind::Picture("AVIF"),
        _ if at(4, b"ftyp") && any(8, &[b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"]) => Kind::Picture("HEIC"),
        _ if any(4, &[b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"moof"]) => Kind::Mp4,
        _ if at(0, b"\x1a\x45\xdf\xa3") => Kind::Foreign(if contains(head, b"webm") { "WebM" } else { "Matroska" }),
        _ if at(0, b"RIFF") && at(8, b"AVI ") => Kind::Foreign("AVI"),
        _ if at(0, b"FLV\x01") => Kind::Foreign("Flash Video"),
        _ if at(0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11") => Kind::Foreign("Windows Media"),
        _ if at(0, b"OggS") => Kind::Foreign("Ogg"),
        _ if any(0, &[b"\0\0\x01\xba", b"\0\0\x01\xb3"]) => Kind::Foreign("MPEG"),
        _ if at(0, b"\x47") && at(188, b"\x47") && at(376, b"\x47") => Kind::Foreign("MPEG transport stream"),
        _ if at(4, b"\x47") && at(196, b"\x47") && at(388, b"\x47") => Kind::Foreign("MPEG transport stream"),
        _ if at(0, b"DKIF") => Kind::Foreign("IVF"),
        _ if at(0, b"\x06\x0e\x2b\x34\x02\x05\x01\x01") => Kind::Foreign("MXF"),
        _ if any(0, &[b"\0\0\0\x01\x67", b"\0\0\0\x01\x09", b"\0\0\0\x01\x40", b"\0\0\0\x01\x46", b"\0\0\x01\x67"]) => {
            Kind::Foreign("raw H.264 or HEVC")
        }
        _ if at(0, b"BM") && at(6, b"\0\0\0\0") => Kind::Bmp,
        _ if any(0, &[b"II*\0", b"MM\0*"]) => Kind::Picture("TIFF"),
        _ if any(0, &[b"\xff\x0a", b"\0\0\0\x0cJXL "]) => Kind::Picture("JPEG XL"),
        _ if any(0, &[b"<!DOCTYPE html", b"<!doctype html", b"<html"]) => Kind::Other("a web page"),
        _ if any(0, &[b"<svg", b"<?xml"]) => Kind::Other("a drawing (SVG) or other text of marks"),
        _ if at(0, b"version https://git-lfs") => Kind::Other("a pointer of Git LFS, not the file that it stands for"),
        _ if at(0, b"%PDF") => Kind::Other("a PDF document"),
        _ => Kind::Unknown,
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The codec in a Matroska or AVI file, where it stands near the front.
/// - Source: RFC 9559 (`CodecID`, 0x86; `V_...` names pictures); AVI's `strh`: kind, then four letters.
pub fn codec(head: &[u8]) -> Option<String> {
    let matroska = head.windows(4).enumerate().find_map(|(i, window)| {
        let [0x86, size @ 0x82..=0xA0, b'V', b'_'] = *window else { return None };
        head.get(i + 4..i + 2 + usize::from(size - 0x80))
    });
    let avi = head.windows(16).find(|w| w.starts_with(b"strh") && &w[8..12] == b"vids").map(|w| &w[12..16]);
    let name = String::from_utf8_lossy(matroska.or(avi)?).trim_end_matches('\0').to_string();
    Some(match name.as_str() {
        "MPEG4/ISO/AVC" => "H.264".to_string(),
        "MPEGH/ISO/HEVC" => "HEVC (H.265)".to_string(),
        "MPEG4/ISO/ASP" | "MPEG4/ISO/SP" => "MPEG-4 part 2".to_string(),
        _ => name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_first_bytes() {
        assert_eq!(kind(b"\0\0\0\x20ftypisom"), Kind::Mp4);
        assert_eq!(kind(b"\0\0\0\x20ftypheic"), Kind::Picture("HEIC"));
        assert_eq!(kind(b"RIFF....WEBPVP8 "), Kind::Webp);
        assert_eq!(kind(b"RIFF....AVI LIST"), Kind::Foreign("AVI"));
        assert_eq!(kind(b"\x1a\x45\xdf\xa3\x93\x42\x82\x88matroska"), Kind::Foreign("Matroska"));
        assert_eq!(kind(b"Dear all,\nplease find"), Kind::Unknown);
        assert_eq!(kind(b""), Kind::Unknown);
        assert_eq!(kind(b"<!DOCTYPE html><html>"), Kind::Other("a web page"));
        assert_eq!(codec(b"..\x86\x85V_VP9.."), Some("VP9".to_string()));
        assert_eq!(codec(b"..\x86\x8fV_MPEG4/ISO/AVC.."), Some("H.264".to_string()));
        assert_eq!(codec(b"strh....vidsXVID...."), Some("XVID".to_string()));
        assert_eq!(codec(b"\x86\xa0V_"), None);
    }
}
