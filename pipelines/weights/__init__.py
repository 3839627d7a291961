"""Where a part's weights come from: repositories, folders and single files, and how they name their tensors."""
