//! Row-major f32 matrices and the two products that transformers need.

use matrixmultiply::sgemm;
use rayon::prelude::*;

/// Below this many rows a product reads its weights faster than it could pack them for the blocked routine.
const BLOCKED_FROM_ROWS: usize = 8;

/// A row-major matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    width: usize,
    values: Vec<f32>,
}

impl Matrix {
    /// A matrix of `rows * width` elements; `values` holds them row by row, and what does not fill a row is dropped.
    pub(super) fn new(width: usize, mut values: Vec<f32>) -> Self {
        let width = width.max(1);
        values.truncate(values.len() / width * width);
        Self { width, values }
    }

    pub(super) fn zeros(rows: usize, width: usize) -> Self {
        Self::new(width, vec![0.0; rows * width])
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.width
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..][..self.width]
    }

    /// All elements, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All elements, row by row.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }

    pub(super) fn rows_mut(&mut self) -> std::slice::ChunksExactMut<'_, f32> {
        self.values.chunks_exact_mut(self.width)
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.values.iter_mut().zip(&other.values).for_each(|(a, b)| *a += b);
    }
}

/// A projection `y = x W^T + b`; `weight` is `[out, in]`.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) weight: Matrix,
    pub(super) bias: Option<Vec<f32>>,
}

impl Linear {
    /// `[rows, in]` to `[rows, out]`.
    pub(super) fn apply(&self, x: &Matrix) -> Matrix {
        let mut y = times_transposed(x, &self.weight);
        if let Some(bias) = &self.bias {
            y.rows_mut().for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        }
        y
    }
}

/// `x W^T` for `x` of `[rows, in]` and `weight` of `[out, in]`.
pub(super) fn times_transposed(x: &Matrix, weight: &Matrix) -> Matrix {
    let (rows, inner, out) = (x.rows(), x.width(), weight.rows());
    let mut y = Matrix::zeros(rows, out);
    if rows < BLOCKED_FROM_ROWS {
        for (x, y) in x.values().chunks_exact(inner).zip(y.values_mut().chunks_exact_mut(out)) {
            y.par_iter_mut().with_min_len(64).enumerate().for_each(|(column, y)| *y = dot(x, weight.row(column)));
        }
        return y;
    }
    let share = rows.div_ceil(rayon::current_num_threads()).max(BLOCKED_FROM_ROWS);
    y.values_mut().par_chunks_mut(share * out).zip(x.values().par_chunks(share * inner)).for_each(|(y, x)| {
        let x = Strided { values: x, rows: x.len() / inner, columns: inner, stride: inner };
        let weight = Strided { values: weight.values(), rows: out, columns: inner, stride: inner };
        product_with_transposed(1.0, x, weight, y);
    });
    y
}

/// A matrix inside a larger one: `columns` columns of rows that start `stride` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Strided<'a> {
    pub(super) values: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) stride: usize,
}

impl Strided<'_> {
    fn assert_inside(&self) {
        let needed = if self.rows == 0 { 0 } else { (self.rows - 1) * self.stride + self.columns };
        assert!(needed <= self.values.len() && self.columns <= self.stride, "a strided matrix reaches beyond its values");
    }
}

/// `c = alpha * a b^T`, where `c` is dense, `[a.rows, b.rows]`.
pub(super) fn product_with_transposed(alpha: f32, a: Strided<'_>, b: Strided<'_>, c: &mut [f32]) {
    a.assert_inside();
    b.assert_inside();
    assert!(a.columns == b.columns && a.rows * b.rows <= c.len(), "shapes of a product");
    let (m, k, n) = (a.rows, a.columns, b.rows);
    // SAFETY: the assertions above keep every element that the strides reach inside the three slices, and `c` is borrowed alone.
    unsafe {
        sgemm(
            m,
            k,
            n,
            alpha,
            a.values.as_ptr(),
            a.stride as isize,
            1,
            b.values.as_ptr(),
            1,
            b.stride as isize,
            0.0,
            c.as_mut_ptr(),
            n as isize,
            1,
        );
    }
}

/// `c = a b`, where `c` is dense, `[a.rows, b.columns]`.
pub(super) fn product(a: Strided<'_>, b: Strided<'_>, c: &mut [f32]) {
    a.assert_inside();
    b.assert_inside();
    assert!(a.columns == b.rows && a.rows * b.columns <= c.len(), "shapes of a product");
    let (m, k, n) = (a.rows, a.columns, b.columns);
    // SAFETY: the assertions above keep every element that the strides reach inside the three slices, and `c` is borrowed alone.
    unsafe {
        sgemm(
            m,
            k,
            n,
            1.0,
            a.values.as_ptr(),
            a.stride as isize,
            1,
            b.values.as_ptr(),
            b.stride as isize,
            1,
            0.0,
            c.as_mut_ptr(),
            n as isize,
            1,
        );
    }
}

/// The inner product, in eight partial sums that the compiler can keep in one vector register.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<8>();
    let (b_chunks, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(rows: usize, width: usize, step: f32) -> Matrix {
        Matrix::new(width, (0..rows * width).map(|i| (i as f32 * step).sin()).collect())
    }

    #[test]
    fn few_rows_and_many_rows_give_the_same_product() {
        let weight = counting(19, 37, 0.7);
        let many = counting(21, 37, 0.3);
        let blocked = times_transposed(&many, &weight);
        for row in 0..many.rows() {
            let single = times_transposed(&Matrix::new(37, many.row(row).to_vec()), &weight);
            for (a, b) in single.values().iter().zip(blocked.row(row)) {
                assert!((a - b).abs() < 1e-5, "row {row}: {a} and {b}");
            }
        }
    }

    #[test]
    fn a_product_is_bit_identical_on_any_number_of_threads() {
        let (weight, x) = (counting(33, 70, 0.7), counting(45, 70, 0.3));
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| times_transposed(&x, &weight))
        };
        assert_eq!(on(1), on(2));
        assert_eq!(on(1), on(5));
    }
}
