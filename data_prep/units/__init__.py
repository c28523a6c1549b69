"""Work units: what is tokenized together, stored, resumed and assembled."""
