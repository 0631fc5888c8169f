//! Numbers as people read them.

/// With three digits that mean something, and commas by the thousand: 0.0123, 4.56, 78.9, 1,235, 1,234,568.
pub(crate) fn shown(number: f64) -> String {
    let size = number.abs();
    let decimals = match size {
        _ if size == 0.0 || size >= 99.95 => 0,
        _ if size >= 9.995 => 1,
        _ if size >= 0.9995 => 2,
        // As many more as there are zeros in front.
        _ => (2 - size.log10().floor() as i32).clamp(2, 9) as usize,
    };
    let plain = format!("{size:.decimals$}");
    let (whole, fraction) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut grouped = String::new();
    if number < 0.0 {
        grouped.push('−');
    }
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

/// Short, for the ends of bars and for axes: 950, 4.2 k, 131 k, 1.2 M.
pub(crate) fn short(number: f64) -> String {
    let (scaled, suffix) = match number.abs() {
        size if size >= 1e9 => (number / 1e9, " G"),
        size if size >= 1e6 => (number / 1e6, " M"),
        size if size >= 1e4 => (number / 1e3, " k"),
        _ => (number, ""),
    };
    shown(scaled) + suffix
}

/// As [`short`], without zeros that say nothing: 0, 0.5, 20, 1 k.
pub(crate) fn tick(number: f64) -> String {
    let short = match number.abs() {
        size if (1e3..1e4).contains(&size) => shown(number / 1e3) + " k",
        _ => short(number),
    };
    let (number, suffix) = short.split_once(' ').unwrap_or((&short, ""));
    let number = if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        number
    };
    format!("{number}{suffix}")
}

/// As [`tick`], of a number whose last digits nobody wants: 1,024 is 1k, 131,072 is 131k, 1,048,576 is 1M.
pub(crate) fn about(number: f64) -> String {
    let digits = number.abs().log10().floor().max(0.0) as i32;
    // Three digits where they are before the point, else two.
    let kept = if digits % 3 == 2 { 2 } else { 1 };
    let unit = 10f64.powi((digits - kept).max(0));
    tick((number / unit).round() * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_are_shown() {
        for (number, wanted) in [
            (0.0, "0"),
            (0.01234, "0.0123"),
            (0.9999, "1.00"),
            (4.5678, "4.57"),
            (78.95, "79.0"),
            (99.96, "100"),
            (-3.5, "−3.50"),
            (1234.5, "1,234"),
            (1_234_567.8, "1,234,568"),
        ] {
            assert_eq!(shown(number), wanted);
        }
    }

    #[test]
    fn short_numbers_have_a_suffix() {
        for (number, as_short, as_tick) in [
            (0.5, "0.500", "0.5"),
            (20.0, "20.0", "20"),
            (950.0, "950", "950"),
            (4200.0, "4,200", "4.2k"),
            (131_072.0, "131 k", "131k"),
            (1_234_567.0, "1.23 M", "1.23M"),
        ] {
            assert_eq!(short(number), as_short);
            assert_eq!(tick(number), as_tick);
        }
    }

    #[test]
    fn powers_of_two_are_about_those_of_ten() {
        for (number, wanted) in [
            (1.0, "1"),
            (100.0, "100"),
            (1024.0, "1k"),
            (16_384.0, "16k"),
            (131_072.0, "131k"),
            (1_048_576.0, "1M"),
        ] {
            assert_eq!(about(number), wanted);
        }
    }
}
