"""What the suites are made of: questions, answers, judges, scores. Tensors, texts and files in; no configuration."""
