//! What `ffmpeg` says on standard error, which is meant for people and changes little.

/// The last line that says something, for an error.
pub fn last_line(talk: &str) -> &str {
    talk.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it said nothing")
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

/// - Returns codec, whether there is sound, whether it is brighter than 8 bits can show.
pub fn described(talk: &str) -> (String, bool, bool) {
    let video = ours(talk).and_then(|line| line.split_once(": Video: ")).map_or("", |(_, rest)| rest);
    let codec = match video.split([' ', ',']).next().unwrap_or_default() {
        "" => "unknown".to_string(),
        "h264" => "H.264".to_string(),
        "hevc" => "HEVC (H.265)".to_string(),
        "mpeg4" => "MPEG-4 part 2".to_string(),
        "prores" => "ProRes".to_string(),
        name @ ("av1" | "vp8" | "vp9") => name.to_ascii_uppercase(),
        name => name.to_string(),
    };
    let sound = streams(talk).any(|line| line.contains(": Audio: "));
    (codec, sound, video.contains("smpte2084") || video.contains("arib-std-b67"))
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
pub fn tagged(line: &str) -> bool {
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
        assert_eq!(described(TALK), ("HEVC (H.265)".to_string(), true, true));
        assert!(ours(TALK).is_some_and(tagged));
        assert!(tagged("Video: vp9, yuv420p(bt470bg/unknown/unknown)"));
        assert!(!tagged("Video: vp9 (Profile 0), yuv420p(tv, unknown/bt709/bt709, progressive), 320x240"));
        assert_eq!(complaint(TALK), Some("Could not find ref with POC 3, error".to_string()));
        assert_eq!(described(""), ("unknown".to_string(), false, false));
        assert_eq!(last_line("a\nb  \n\n"), "b");
    }
}
