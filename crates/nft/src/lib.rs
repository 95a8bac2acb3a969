//! portolan-nft
