"""AlpacaEval-2: answers compared with a baseline's by a judge, and the win rate with the length taken out."""
