"""UnLearning from Experience (Mitchell, Martínez del Rincón, McLaughlin, 2025) for the Hugging Face ecosystem."""
