//! What `ffmpeg` says on standard error, which is meant for people and changes little.

use super::shape::Shape;

/// The last line that says something, for an error.
pub fn last_line(talk: &str) -> String {
    super::short(talk.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it said nothing"))
}

/// The lines about the input's streams: `Stream #0:1(eng): Video: hevc (Main) (hvc1 / 0x...), yuv420p(tv, bt709), ...`.
fn streams(talk: &str) -> impl Iterator<Item = &str> {
    talk.lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Output #"))
        .filter(|line| line.starts_with("Stream #"))
}

/// The line of the stream that is read: the one that `Stream #0:1 -> #0:0` names.
pub fn ours(talk: &str) -> Option<&str> {
    let chosen =
        talk.lines().find_map(|line| line.trim().strip_prefix("Stream #")?.split_once(" -> ")).map(|(id, _)| id);
    let of = |line: &&str| {
        let id = line["Stream #".len()..].split(['(', '[', ' ']).next().unwrap_or_default().trim_end_matches(':');
        chosen.is_none_or(|chosen| chosen == id)
    };
    streams(talk).filter(|line| line.contains(": Video: ")).find(of)
}

/// What is said of the stream that is read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Described {
    pub codec: String,
    /// There is sound besides.
    pub sound: bool,
    /// Brighter than 8 bits can show.
    pub hdr: bool,
    /// The matrix is named.
    pub tagged: bool,
    /// Of pixels that are not square.
    pub shape: Option<Shape>,
    /// Two half pictures in one.
    pub interlaced: bool,
    /// The picture is one of the tiles that make it up.
    pub tiled: bool,
}

pub fn described(talk: &str) -> Described {
    let line = ours(talk).unwrap_or_default();
    let video = line.split_once(": Video: ").map_or("", |(_, rest)| rest);
    let codec = match video.split([' ', ',']).next().unwrap_or_default() {
        "" => "unknown".to_string(),
        "h264" => "H.264".to_string(),
        "hevc" => "HEVC (H.265)".to_string(),
        "mpeg4" => "MPEG-4 part 2".to_string(),
        "prores" => "ProRes".to_string(),
        name @ ("av1" | "vp8" | "vp9") => name.to_ascii_uppercase(),
        name => super::short(name),
    };
    let says = |words: &[&str]| words.iter().any(|word| video.contains(word));
    let shape = video.split_once("SAR ").and_then(|(_, rest)| rest.split(' ').next()?.split_once(':'));
    Described {
        codec,
        sound: streams(talk).any(|line| line.contains(": Audio: ")),
        hdr: says(&["smpte2084", "arib-std-b67"]),
        tagged: tagged(line),
        // a film that is turned has its shape turned too, which is not said
        shape: shape
            .filter(|_| !talk.contains("rotation of"))
            .and_then(|(across, down)| Shape::new(across.parse().ok()?, down.trim_end_matches(']').parse().ok()?)),
        interlaced: says(&["top first", "bottom first", "top coded first", "bottom coded first"]),
        tiled: says(&["(dependent)"]) || talk.contains("Tile Grid"),
    }
}

/// What is said between the plan and the summary, if anything: decoding without trouble is silent there.
pub fn complaint(talk: &str) -> Option<String> {
    let line = talk.lines().map(str::trim).find(|line| {
        let words = ["error", "corrupt", "invalid", "missing", "concealing", "prematurely", "truncated"];
        line.starts_with('[') && words.iter().any(|word| line.to_ascii_lowercase().contains(word))
    })?;
    Some(line.split_once("] ").map_or(line, |(_, text)| text).chars().take(100).collect())
}

/// Whether a stream's line names the matrix: `yuv420p(tv, bt709)`, `yuv420p(bt470bg/unknown/unknown)`.
fn tagged(line: &str) -> bool {
    const NAMES: [&str; 9] =
        ["bt709", "fcc", "bt470bg", "smpte170m", "smpte240m", "bt2020nc", "bt2020c", "gbr", "ycgco"];
    line.split(['(', ')', ',']).any(|part| part.split('/').next().is_some_and(|name| NAMES.contains(&name.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TALK: &str = "Input #0, mov,mp4, from 'file:Stream #0:0: Video: x.mp4':
  Stream #0:0[0x1](und): Audio: aac (LC), 44100 Hz
  Stream #0:1[0x2](und): Video: hevc (Main 10) (hvc1 / 0x31637668), yuv420p10le(tv, bt2020nc/bt2020/arib-std-b67), 64x48
Stream mapping:
  Stream #0:1 -> #0:0 (hevc (native) -> rawvideo (native))
Output #0, framecrc, to 'pipe:':
  Stream #0:0: Video: rawvideo, yuv420p10le, 64x48
[hevc @ 0x1234] Could not find ref with POC 3, error
";

    #[test]
    fn its_talk_is_understood() {
        let codec = "HEVC (H.265)".to_string();
        assert_eq!(described(TALK), Described { codec, sound: true, hdr: true, tagged: true, ..Described::default() });
        let talk = "Stream #0:0: Video: h264, yuv420p(tv, top first), 96x64 [SAR 4:3 DAR 2:1], 25 fps";
        assert!(described(talk).shape.is_some() && described(talk).interlaced && !described(talk).tagged);
        assert_eq!(described("Stream #0:0: Video: vp9, yuv420p(tv, progressive), 96x64 [SAR 1:1 DAR 3:2]").shape, None);
        assert!(ours(TALK).is_some_and(tagged));
        assert!(tagged("Video: vp9, yuv420p(bt470bg/unknown/unknown)"));
        assert!(!tagged("Video: vp9 (Profile 0), yuv420p(tv, unknown/bt709/bt709, progressive), 320x240"));
        assert_eq!(complaint(TALK), Some("Could not find ref with POC 3, error".to_string()));
        assert_eq!(described(""), Described { codec: "unknown".to_string(), ..Described::default() });
        assert_eq!(last_line("a\nb  \n\n"), "b");
    }
}
