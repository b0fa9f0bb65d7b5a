"""The product's scheduling, drafting and acceptance code in virtual time, with modelled forwards and networks."""
