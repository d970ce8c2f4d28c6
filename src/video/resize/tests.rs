use super::*;

/// The same numbers as the maker of `GOLDEN` fills its pictures with.
fn noise(width: usize, height: usize) -> Frame {
    let byte = |i: u32| (i.wrapping_mul(0x9E37_79B9) >> 13) as u8;
    Frame { width, height, rgb: (0..(width * height * 3) as u32).map(byte).collect() }
}

/// Pillow 13.0.0: `Image.fromarray(noise).resize(size, LANCZOS)`. Sizes, then the bytes where there are few, else a sum
/// of every byte times its place (from 1), modulo 2^32.
type Golden = ((usize, usize), (usize, usize), &'static [u8], u32);

#[rustfmt::skip]
const GOLDEN: [Golden; 10] = [
    ((7, 5), (3, 2), &[92, 136, 134, 114, 132, 113, 89, 150, 124, 122, 139, 113, 96, 149, 130, 119, 128, 126], 21236),
    ((3, 2), (5, 3), &[0, 187, 128, 0, 241, 144, 32, 252, 184, 92, 98, 224, 119, 0, 239, 71, 129, 64, 102, 162, 80, 128, 188, 120, 82, 142, 160, 53, 101, 175, 160, 70, 0, 214, 82, 16, 224, 124, 56, 71, 185, 96, 0, 215, 111], 119643),
    ((9, 4), (2, 4), &[88, 143, 128, 103, 131, 122, 102, 147, 122, 96, 141, 136, 113, 141, 109, 100, 155, 124, 117, 128, 123, 111, 142, 117], 37115),
    ((150, 111), (96, 64), &[], 183913430),
    ((31, 17), (96, 64), &[], 155489700),
    ((201, 77), (33, 201), &[], 3768646582),
    ((1, 1), (13, 9), &[], 6315075),
    ((64, 48), (64, 7), &[], 115241219),
    ((49, 46), (39, 21), &[], 385009091),
    ((12, 54), (31, 14), &[], 108406886),
];

#[test]
fn lanczos_is_pillows_to_the_byte() {
    for (from, to, bytes, sum) in GOLDEN {
        let got = lanczos(&noise(from.0, from.1), to.0, to.1);
        assert_eq!((got.width, got.height, got.rgb.len()), (to.0, to.1, to.0 * to.1 * 3));
        if !bytes.is_empty() {
            assert_eq!(got.rgb, bytes, "{from:?} to {to:?}");
        }
        let add = |sum: u32, (i, &byte): (usize, &u8)| sum.wrapping_add((i as u32 + 1).wrapping_mul(byte.into()));
        assert_eq!(got.rgb.iter().enumerate().fold(0, add), sum, "{from:?} to {to:?}");
    }
    assert_eq!(lanczos(&noise(8, 6), 8, 6), noise(8, 6));
    assert!(lanczos(&noise(8, 6), 0, 6).rgb.is_empty());
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| lanczos(&noise(61, 47), 33, 90))
    };
    assert_eq!(on(1), on(3));
}

/// Red left third, green middle, blue right.
fn flag(width: usize, height: usize) -> Frame {
    let colour = |x: usize| [[250, 0, 0], [0, 250, 0], [0, 0, 250]][x * 3 / width];
    let row: Vec<u8> = (0..width).flat_map(colour).collect();
    Frame { width, height, rgb: row.repeat(height) }
}

#[test]
fn the_three_ways_to_fit() {
    let at = |frame: &Frame, x: usize, y: usize| {
        let pixel = &frame.rgb[(y * frame.width + x) * 3..][..3];
        pixel.iter().map(|&c| c > 125).collect::<Vec<_>>()
    };
    let (red, green, black) = ([true, false, false], [false, true, false], [false; 3]);
    let wide = flag(90, 30);
    let cropped = fit(&wide, 40, 40, Fit::Crop);
    assert_eq!((at(&cropped, 1, 20), at(&cropped, 38, 20)), (green.to_vec(), green.to_vec()));
    let stretched = fit(&wide, 40, 40, Fit::Stretch);
    assert_eq!((at(&stretched, 2, 1), at(&stretched, 20, 38)), (red.to_vec(), green.to_vec()));
    let padded = fit(&wide, 60, 60, Fit::Pad);
    assert_eq!((at(&padded, 5, 19), at(&padded, 5, 20)), (black.to_vec(), red.to_vec()));
    assert_eq!((at(&padded, 5, 39), at(&padded, 5, 40)), (red.to_vec(), black.to_vec()));
    let tall = fit(&flag(30, 90), 60, 30, Fit::Pad);
    assert_eq!((at(&tall, 24, 9), at(&tall, 26, 9), at(&tall, 36, 9)), (black.to_vec(), red.to_vec(), black.to_vec()));
    for way in [Fit::Crop, Fit::Stretch, Fit::Pad] {
        for (from, to) in [((1, 1), (7, 3)), ((1, 400), (5, 5)), ((400, 1), (5, 5)), ((48, 32), (96, 64))] {
            let got = fit(&noise(from.0, from.1), to.0, to.1, way);
            assert_eq!((got.width, got.height, got.rgb.len()), (to.0, to.1, to.0 * to.1 * 3));
        }
        assert_eq!(fit(&noise(48, 32), 96, 64, way), lanczos(&noise(48, 32), 96, 64), "same aspect, {way:?}");
    }
}

#[test]
fn a_flat_picture_has_no_blur() {
    let flat = Frame { width: 5, height: 3, rgb: [7, 100, 255].repeat(15) };
    assert_eq!(blur(&flat), flat);
    assert_eq!(blur(&noise(1, 1)), noise(1, 1));
    let mut dot = Frame { width: 5, height: 5, rgb: vec![0; 75] };
    dot.rgb[36] = 200; // red in the middle: 0.4519 x 0.4519, 0.4519 x 0.2741, 0.2741 x 0.2741 of it
    let got = blur(&dot);
    assert_eq!([got.rgb[36], got.rgb[39], got.rgb[21], got.rgb[18], got.rgb[37]], [40, 24, 24, 15, 0]);
}

#[cfg(feature = "h264")]
#[test]
fn a_degraded_still_is_near_and_even() -> Result<()> {
    let smooth = |w: usize, h: usize| {
        let byte = |i: usize| (128.0 + 90.0 * ((i / 3 % w) as f64 * 0.1 + (i % 3) as f64).sin()) as u8;
        Frame { width: w, height: h, rgb: (0..w * h * 3).map(byte).collect() }
    };
    assert_eq!(degrade(&smooth(9, 9), 0)?, smooth(9, 9));
    let mut before = 0.0;
    for crf in [10, 29, 45] {
        let got = degrade(&smooth(65, 49), crf)?;
        assert_eq!((got.width, got.height), (64, 48));
        let clean = part(&smooth(65, 49), 0, 0, 64, 48);
        let error = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
        let mse = got.rgb.iter().zip(&clean.rgb).map(error).sum::<f64>() / got.rgb.len() as f64;
        assert!(mse > before && mse < 200.0, "{crf}: {mse}");
        before = mse;
    }
    assert_eq!(degrade(&smooth(6, 4), 29)?.rgb.len(), 72);
    assert!(degrade(&smooth(1, 4), 29).is_err());
    Ok(())
}

#[test]
fn pictures_are_enlarged_a_whole_number_of_times() {
    let (width, height) = (5, 3);
    let frame = Frame { width, height, rgb: (0..width * height * 3).map(|i| (i * 37 % 251) as u8).collect() };
    assert_eq!(enlarge(frame.clone(), 1, Filter::Lanczos), frame);
    assert_eq!(enlarge(frame.clone(), 4, Filter::Lanczos), lanczos(&frame, 20, 12));
    let squares = enlarge(frame.clone(), 4, Filter::Nearest);
    assert_eq!((squares.width, squares.height, squares.rgb.len()), (20, 12, 20 * 12 * 3));
    for (x, y) in (0..20).flat_map(|x| (0..12).map(move |y| (x, y))) {
        let at = |frame: &Frame, x: usize, y: usize| frame.rgb[(y * frame.width + x) * 3..][..3].to_vec();
        assert_eq!(at(&squares, x, y), at(&frame, x / 4, y / 4), "{x},{y}");
    }
}

/// A photo of ten megapixels, more than openh264 takes at once.
#[cfg(feature = "h264")]
#[test]
fn large_pictures_are_degraded_in_tiles() -> Result<()> {
    let (w, h) = (4112, 2400);
    let byte = |i: usize| (128.0 + 90.0 * ((i / 3 % w) as f64 * 0.02 + (i % 3) as f64).sin()) as u8;
    let clean = Frame { width: w, height: h, rgb: (0..w * h * 3).map(byte).collect() };
    let got = degrade(&clean, 29)?;
    assert_eq!((got.width, got.height), (w, h));
    let apart: u64 = got.rgb.iter().zip(&clean.rgb).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    assert!(apart < 4 * got.rgb.len() as u64, "{} of 255 apart on average", apart as f64 / got.rgb.len() as f64);
    Ok(())
}

#[test]
fn the_aspect_is_met_at_the_pictures_own_size() {
    let size = |width, height| {
        let frame = Frame { width: 150, height: 60, rgb: vec![9; 150 * 60 * 3] };
        let frame = cropped(&frame, width, height);
        (frame.width, frame.height)
    };
    assert_eq!([size(64, 32), size(32, 64), size(50, 20)], [(120, 60), (30, 60), (150, 60)]);
}
