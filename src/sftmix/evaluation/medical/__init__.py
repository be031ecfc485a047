"""Medical multiple choice (Table 2): the published questions, BioMistral's prompt, scores by lm-eval."""
