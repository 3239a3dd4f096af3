//! From a tensor as a checkpoint keeps it to a parameter as the engine wants it.

/// How a checkpoint's tensor holds a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// The tensor is the parameter.
    Whole,
    /// The tensor is `[in, of]` where the parameter is `[out, in]`: its columns from `first` on are the parameter's rows. For a bias, the tensor
    /// is `[of]` and the parameter its elements from `first` on.
    Columns {
        /// The column that is the parameter's first row.
        first: usize,
        /// Columns of the tensor.
        of: usize,
    },
}

impl Layout {
    /// The shape of the tensor that holds a parameter of this shape.
    pub(super) fn stored_shape(self, shape: &[usize]) -> Vec<usize> {
        match self {
            Self::Whole => shape.to_vec(),
            Self::Columns { of, .. } => shape.iter().skip(1).rev().copied().chain([of]).collect(),
        }
    }

    /// The parameter of this shape, row-major, out of the elements of its tensor.
    pub(super) fn extract<T: Copy + Default>(self, stored: Vec<T>, shape: &[usize]) -> Vec<T> {
        /// Rows written at once: the cache lines that they need at a time fit the first-level cache, and each is filled before it leaves.
        const ROWS: usize = 32;
        let Self::Columns { first, of } = self else { return stored };
        let (rows, columns) = (shape[0], shape[1..].iter().product::<usize>());
        let mut extracted = vec![T::default(); rows * columns];
        for (block, target) in extracted.chunks_mut(ROWS * columns).enumerate() {
            for (column, source) in stored.chunks_exact(of).enumerate() {
                let source = &source[first + block * ROWS..];
                target.chunks_exact_mut(columns).zip(source).for_each(|(row, &value)| row[column] = value);
            }
        }
        extracted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_a_stored_matrix_become_the_rows_of_a_parameter() {
        // [2, 100]: row 0 counts from 0, row 1 from 1000.
        let stored: Vec<u32> = (0..100).chain(1000..1100).collect();
        let layout = Layout::Columns { first: 7, of: 100 };
        assert_eq!(layout.stored_shape(&[70, 2]), [2, 100]);
        let expected: Vec<u32> = (7..77).flat_map(|row| [row, 1000 + row]).collect();
        assert_eq!(layout.extract(stored, &[70, 2]), expected);
    }

    #[test]
    fn a_part_of_a_stored_bias_becomes_a_parameter() {
        let layout = Layout::Columns { first: 40, of: 120 };
        assert_eq!(layout.stored_shape(&[40]), [120]);
        assert_eq!(layout.extract((0..120).collect::<Vec<u32>>(), &[40]), (40..80).collect::<Vec<u32>>());
    }
}
