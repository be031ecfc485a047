"""Who answers: the model in this process, or a server that has it."""
