// The adversarial losses, for CPU and CUDA kernels. This header does not include torch.
//
// A loss is scale * (mean phi(u; target) + mean phi(v; other_target)). `kind` selects phi, `relativistic` selects u and
// v:
//   none      u = logits,                     v = other_logits, if there are any
//   paired    u = logits - other_logits,      no v
//   average   u = logits - mean other_logits, v = other_logits - mean logits
#pragma once

namespace gan_fast::adversarial {

// phi(u; t):
//   minimax        (1 - t) u + log(1 + exp(-u))
//   hinge          t relu(1 - u) + (1 - t) relu(1 + u)
//   wasserstein    (1 - 2 t) u
//   least_squares  (u - t)^2 / 2
enum class Kind { minimax, hinge, wasserstein, least_squares };
enum class Relativistic { none, paired, average };

}  // namespace gan_fast::adversarial
