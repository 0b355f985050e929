// The names of the activations. cpu/activation.h and cuda/activation.cuh compute them.
#pragma once

#include <string_view>

namespace gan_fast {

enum class Activation { identity, relu, leaky_relu, tanh, sigmoid };

// Sets *activation and returns true if `name` is one of the names in gan_fast/ops/activation.py.
inline bool parse_activation(std::string_view name, Activation* activation) {
  constexpr std::string_view names[] = {"identity", "relu", "leaky_relu", "tanh", "sigmoid"};
  for (int i = 0; i < 5; ++i) {
    if (name == names[i]) {
      *activation = static_cast<Activation>(i);
      return true;
    }
  }
  return false;
}

inline bool is_curved(Activation activation) {
  return activation == Activation::tanh || activation == Activation::sigmoid;
}

}  // namespace gan_fast
