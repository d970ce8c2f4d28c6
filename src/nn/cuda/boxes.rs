//! Channels into time and space, and back: `boxes.cu`.

use super::*;

/// Spreads each pixel's channels to a box of pixels, and adds `plus` (1, f, h, w, m) spread likewise: (1, f, h, w, c n) -> (1, st f, sh h, sw w, c).
/// - `columns`: whether the columns of a box stand before its lines.
pub fn spread(x: &Tensor, stride: [usize; 3], plus: Option<&Tensor>, columns: bool) -> Result<Tensor> {
    let plus = plus.map(Tensor::contiguous).transpose()?;
    x.contiguous()?.apply_op1_no_bwd(&Spread { stride, plus, columns })
}

/// Gathers each box of pixels into the channels of one, in means of `mean` neighbours: (1, st f, sh h, sw w, c) -> (1, f, h, w, c n / mean).
pub fn gather(x: &Tensor, stride: [usize; 3], mean: usize, columns: bool) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Gather { stride, mean, columns })
}

struct Spread {
    stride: [usize; 3],
    plus: Option<Tensor>,
    columns: bool,
}

struct Gather {
    stride: [usize; 3],
    mean: usize,
    columns: bool,
}

impl CustomOp1 for Spread {
    fn name(&self) -> &'static str {
        "spread"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_here()
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (_, f, h, w, channels) = layout.shape().dims5()?;
        let [st, sh, sw] = self.stride;
        let (n, count) = (st * sh * sw, layout.shape().elem_count());
        let (c, m) = (channels / n, self.plus.as_ref().map_or(Ok(0), |plus| Ok::<_, Error>(plus.dim(4)? / n))?);
        if !layout.is_contiguous() || c * n != channels || self.plus.is_some() && m == 0 {
            bail!("cuda: {:?} in boxes of {n}", layout.dims())
        }
        let (dtype, device) = (storage_type(storage), &storage.device);
        let x = storage_place(storage, layout)?;
        let plus = place(self.plus.as_ref(), dtype, f * h * w * m * n)?;
        let (made, y) = result(device, dtype, count)?;
        let stream = device.cuda_stream();
        let function = load(device, File::Boxes, &format!("spread_{}", type_name(dtype)))?;
        let sizes = [m, h, w, c, st, sh, sw, usize::from(self.columns)].map(|n| n as u32);
        let total = count as u32;
        let mut launch = stream.launch_builder(&function);
        launch.arg(&x).arg(&y).arg(&total).arg(&plus);
        sizes.iter().for_each(|size| {
            launch.arg(size);
        });
        // SAFETY: as above.
        unsafe { launch.launch(each_value(count)) }.w()?;
        Ok((made, Shape::from((1, f * st, h * sh, w * sw, c))))
    }
}

impl CustomOp1 for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_here()
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (_, frames, height, width, c) = layout.shape().dims5()?;
        let [st, sh, sw] = self.stride;
        let (f, h, w, outputs) = (frames / st, height / sh, width / sw, c * st * sh * sw / self.mean);
        if !layout.is_contiguous() || (f * st, h * sh, w * sw) != (frames, height, width) {
            bail!("cuda: {:?} in boxes of {st} x {sh} x {sw}", layout.dims())
        }
        let (dtype, device) = (storage_type(storage), &storage.device);
        let x = storage_place(storage, layout)?;
        let count = f * h * w * outputs;
        let (made, y) = result(device, dtype, count)?;
        let stream = device.cuda_stream();
        let function = load(device, File::Boxes, &format!("gather_{}", type_name(dtype)))?;
        let sizes = [count, self.mean, h, w, c, st, sh, sw, usize::from(self.columns)].map(|n| n as u32);
        let mut launch = stream.launch_builder(&function);
        launch.arg(&x).arg(&y);
        sizes.iter().for_each(|size| {
            launch.arg(size);
        });
        // SAFETY: as above.
        unsafe { launch.launch(each_value(count)) }.w()?;
        Ok((made, Shape::from((1, f, h, w, outputs))))
    }
}
