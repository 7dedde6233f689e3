"""Networks: synthesis <- blocks, backbones, routing, cost <- basisnet. None of them sees a config."""
