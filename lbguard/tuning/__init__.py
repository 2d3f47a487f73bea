"""What-if tuning: replays recorded incidents under other settings and weighs what each would have cost."""
