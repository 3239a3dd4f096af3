// Heads of 33 to 64 columns on Hopper: DeBERTa's all have 64.
#include "attention/disentangled_wgmma.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

using attention::DisentangledWgmma;
static_assert(sizeof(DisentangledWgmma::Shared) == ATTENTION_DISENTANGLED_WGMMA_SHARED_BYTES);

extern "C" __global__ void __launch_bounds__(DisentangledWgmma::THREADS, DisentangledWgmma::BLOCKS_PER_SM)
    attention_disentangled_wgmma_d64(const __grid_constant__ AttentionDisentangledArgs args, const __grid_constant__ Tiles tiles) {
    extern __shared__ __align__(1024) uint4 dynamic_shared[];
    ElasticTiles queue(tiles);
    for (uint32_t tile; queue.next(tile);) {
        DisentangledWgmma::tile(args, tile, *reinterpret_cast<DisentangledWgmma::Shared *>(dynamic_shared));
    }
}

#endif
