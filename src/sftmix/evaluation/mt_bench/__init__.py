"""MT-Bench: 80 questions of two turns, each answer rated from 1 to 10 (Zheng et al. 2023), by FastChat's rules."""
