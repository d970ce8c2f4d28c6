//! What goes between products, one pass over the rows each: `rows.cu`.

use super::*;

/// What happens to each row: y = act(turn(norm(x) scale + shift)), without what is left out.
#[derive(Clone, Copy, Default)]
pub struct RowOps<'a> {
    /// And what is added to the mean square.
    pub norm: Option<(Norm, f64)>,
    pub scale: Option<&'a Table>,
    pub shift: Option<&'a Table>,
    /// For each token; d is even.
    pub rope: Option<&'a Rope>,
    pub silu: bool,
}

/// What follows a dense layer's product: y = residual + factor gate gelu(x + bias + added), without what is left out.
#[derive(Clone, Default)]
pub struct Epilogue<'a> {
    /// (d)
    pub bias: Option<&'a Tensor>,
    /// As x, and so are `factor` and `residual`.
    pub added: Option<&'a Tensor>,
    pub gelu: bool,
    pub gate: Option<&'a Table>,
    pub factor: Option<&'a Tensor>,
    pub residual: Option<&'a Tensor>,
}

/// Norms rows and what else `how` says, in one pass.
/// - `x`: (..., tokens, d).
pub fn norm_act(x: &Tensor, how: RowOps) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&how)
}

/// Joins parts of a clip, each pixel as [`norm_act`] makes it.
/// - `parts`: (1, frames, h, w, c) each.
pub fn window(parts: &[Tensor], how: Option<RowOps>) -> Result<Tensor> {
    let [first, others @ ..] = parts else { bail!("cuda: no frames") };
    if how.is_none() && others.is_empty() {
        return first.contiguous();
    }
    let others = others.iter().map(Tensor::contiguous).collect::<Result<_>>()?;
    first.contiguous()?.apply_op1_no_bwd(&Window { others, how: how.unwrap_or_default() })
}

/// Finishes a product, in one pass.
/// - `x`: (..., tokens, d).
pub fn finish(x: &Tensor, how: Epilogue) -> Result<Tensor> {
    let same = |t: Option<&Tensor>| t.map(Tensor::contiguous).transpose();
    let (added, factor, residual) = (same(how.added)?, same(how.factor)?, same(how.residual)?);
    let how = Epilogue { added: added.as_ref(), factor: factor.as_ref(), residual: residual.as_ref(), ..how };
    x.contiguous()?.apply_op1_no_bwd(&how)
}

/// How many neighbours a thread can take at once: as many as 16 bytes hold, where every place and `d` allow it.
fn together(dtype: DType, d: usize, places: &[u64]) -> usize {
    let size = dtype.size_in_bytes();
    let fits = |n: &usize| d.is_multiple_of(*n) && places.iter().all(|place| place.is_multiple_of((n * size) as u64));
    [16 / size, 2].into_iter().find(fits).unwrap_or(1)
}

/// A table's values and its index on the GPU, for rows of `d` over `tokens`.
fn table(table: Option<&Table>, dtype: DType, d: usize, tokens: usize) -> Result<(u64, u64)> {
    let Some(table) = table else { return Ok((0, 0)) };
    let values = place(Some(&table.rows), dtype, table.rows.dim(0)? * d)?;
    Ok((values, place(table.index.as_ref(), DType::U32, tokens)?))
}

/// The kernel of that name over rows, for this type and so many neighbours.
fn over_rows(device: &CudaDevice, name: &str, dtype: DType, n: usize) -> Result<CudaFunction> {
    load(device, File::Rows, &format!("{name}_{}_{n}", type_name(dtype)))
}

/// Rows, their width, and the tokens over which indices and positions run.
fn extent(layout: &Layout) -> Result<(usize, usize, usize)> {
    if !layout.is_contiguous() {
        bail!("cuda: expected contiguous rows")
    }
    let dims = layout.dims();
    let d = *dims.last().unwrap_or(&1);
    let tokens = if dims.len() < 2 { 1 } else { dims[dims.len() - 2] };
    Ok((layout.shape().elem_count() / d.max(1), d, tokens))
}

impl CustomOp1 for RowOps<'_> {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_here()
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, d, tokens) = extent(layout)?;
        let (dtype, device) = (storage_type(storage), &storage.device);
        let (made, y) = result(device, dtype, rows * d)?;
        self.launch(device, dtype, (storage_place(storage, layout)?, y), rows, d, tokens)?;
        Ok((made, layout.shape().clone()))
    }
}

impl RowOps<'_> {
    /// - `places`: where the rows lie, and where the result goes. `tokens`: over which indices and positions run.
    fn launch(
        &self,
        device: &CudaDevice,
        dtype: DType,
        (x, y): (u64, u64),
        rows: usize,
        d: usize,
        tokens: usize,
    ) -> Result<()> {
        let (scale, scale_index) = table(self.scale, dtype, d, tokens)?;
        let (shift, shift_index) = table(self.shift, dtype, d, tokens)?;
        let angles = |t: Option<&Tensor>| place(t, DType::F32, tokens * (d / 2));
        let (cosines, sines) = (angles(self.rope.map(|rope| &rope.cos))?, angles(self.rope.map(|rope| &rope.sin))?);
        let n = together(dtype, d, &[x, y, scale, shift]);
        if cosines != 0 && n < 2 {
            bail!("cuda: rotary positions over {d} channels")
        }
        // a warp a row, or more where a row has more for each thread than one piece
        let threads = (d / n).next_power_of_two().clamp(8, BLOCK as usize) as u32;
        let at_once = BLOCK / threads;
        let config = LaunchConfig {
            grid_dim: ((rows as u32).div_ceil(at_once), 1, 1),
            block_dim: (threads, at_once, 1),
            shared_mem_bytes: 0,
        };
        let (norm, eps) = match self.norm {
            None => (0u32, 0.0),
            Some((Norm::Rms, eps)) => (1, eps as f32),
            Some((Norm::Layer, eps)) => (2, eps as f32),
        };
        let (rows, d, tokens) = (rows as u32, d as u32, tokens as u32);
        let silu = self.silu as u32;
        let stream = device.cuda_stream();
        let function = over_rows(device, "norm_act", dtype, n)?;
        let mut launch = stream.launch_builder(&function);
        launch.arg(&x).arg(&y).arg(&rows).arg(&d).arg(&norm).arg(&eps);
        launch.arg(&scale).arg(&scale_index).arg(&shift).arg(&shift_index);
        launch.arg(&cosines).arg(&sines).arg(&tokens).arg(&silu);
        // SAFETY: sizes and types were checked above, and all places outlive the launch: memory is freed in the stream's order.
        unsafe { launch.launch(config) }.w()?;
        Ok(())
    }
}

/// Parts of a clip, one after the other.
struct Window<'a> {
    /// Those after the first.
    others: Vec<Tensor>,
    how: RowOps<'a>,
}

impl CustomOp1 for Window<'_> {
    fn name(&self) -> &'static str {
        "window"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_here()
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, d, tokens) = extent(layout)?;
        let (dtype, device) = (storage_type(storage), &storage.device);
        let mut shape = layout.dims().to_vec();
        let one_frame = rows / shape[FRAMES].max(1);
        let mut parts = vec![(storage_place(storage, layout)?, rows)];
        for other in &self.others {
            let rows = one_frame * other.dim(FRAMES)?;
            parts.push((place(Some(other), dtype, rows * d)?, rows));
            shape[FRAMES] += other.dim(FRAMES)?;
        }
        let (made, mut y) = result(device, dtype, shape.iter().product())?;
        for (x, rows) in parts {
            self.how.launch(device, dtype, (x, y), rows, d, tokens)?;
            y += (rows * d * dtype.size_in_bytes()) as u64;
        }
        Ok((made, Shape::from(shape)))
    }
}

impl CustomOp1 for Epilogue<'_> {
    fn name(&self) -> &'static str {
        "finish"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_here()
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, d, tokens) = extent(layout)?;
        let (dtype, device) = (storage_type(storage), &storage.device);
        let x = storage_place(storage, layout)?;
        let bias = place(self.bias, dtype, d)?;
        let added = place(self.added, dtype, rows * d)?;
        let (gate, gate_index) = table(self.gate, dtype, d, tokens)?;
        let factor = place(self.factor, dtype, rows * d)?;
        let residual = place(self.residual, dtype, rows * d)?;
        let (made, y) = result(device, dtype, rows * d)?;
        let n = together(dtype, d, &[x, y, bias, added, gate, factor, residual]);
        let parts = (rows * d / n) as u32;
        let config = LaunchConfig {
            grid_dim: (parts.div_ceil(BLOCK).min(BLOCKS), 1, 1),
            block_dim: (BLOCK, 1, 1),
            shared_mem_bytes: 0,
        };
        let (d, tokens, gelu) = (d as u32, tokens as u32, self.gelu as u32);
        let stream = device.cuda_stream();
        let function = over_rows(device, "finish", dtype, n)?;
        let mut launch = stream.launch_builder(&function);
        launch.arg(&x).arg(&y).arg(&parts).arg(&d).arg(&bias).arg(&added).arg(&gelu);
        launch.arg(&gate).arg(&gate_index).arg(&tokens).arg(&factor).arg(&residual);
        // SAFETY: as above.
        unsafe { launch.launch(config) }.w()?;
        Ok((made, layout.shape().clone()))
    }
}
