"""Makes, scores and judges INT8 models; runs them through `bench`'s runtimes."""
