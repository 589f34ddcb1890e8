/* What the bindings are generated from: DPDK's headers, and functions in place of
 * those that exist only inline or as macros. */
#include <stdint.h>

#include <rte_cycles.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_version.h>

/* The error of the calling thread's last failed call, positive. */
int shim_errno(void);

uint16_t shim_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t max);
uint16_t shim_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count);

/* Lets the driver adapt packets with offload flags; how many, from the first, may be sent. */
uint16_t shim_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count);

/* One segment, empty, with the default headroom; NULL when the pool is empty. */
struct rte_mbuf *shim_mbuf_alloc(struct rte_mempool *pool);
/* All segments of the packet. */
void shim_mbuf_free(struct rte_mbuf *packet);
/* Gives back packets of one segment each, in as few calls of the pool as possible. */
void shim_mbuf_free_bulk(struct rte_mbuf **packets, unsigned int count);
/* Appends a segment to a packet; 0, or negative if there are too many. */
int shim_mbuf_chain(struct rte_mbuf *head, struct rte_mbuf *tail);
/* Where the headers of a packet lie, for the device's checksum and segmentation. */
void shim_mbuf_tx_offload(struct rte_mbuf *packet, uint64_t flags, uint8_t l2, uint16_t l3, uint8_t l4,
                          uint16_t segment);

/* Features of devices and of packets, as numbers that the bindings can hold. */
static const uint64_t SHIM_RX_CHECKSUM = RTE_ETH_RX_OFFLOAD_IPV4_CKSUM | RTE_ETH_RX_OFFLOAD_TCP_CKSUM | RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
static const uint64_t SHIM_RX_RSS_HASH = RTE_ETH_RX_OFFLOAD_RSS_HASH;
static const uint64_t SHIM_TX_IPV4_CHECKSUM = RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;
static const uint64_t SHIM_TX_TCP_CHECKSUM = RTE_ETH_TX_OFFLOAD_TCP_CKSUM;
static const uint64_t SHIM_TX_UDP_CHECKSUM = RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
static const uint64_t SHIM_TX_TCP_SEGMENTATION = RTE_ETH_TX_OFFLOAD_TCP_TSO;
static const uint64_t SHIM_TX_UDP_SEGMENTATION = RTE_ETH_TX_OFFLOAD_UDP_TSO;
static const uint64_t SHIM_TX_MULTI_SEGMENT = RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
static const uint64_t SHIM_RSS_IP_TCP_UDP = RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP;
static const uint64_t SHIM_MBUF_L4_GOOD = RTE_MBUF_F_RX_L4_CKSUM_GOOD;
static const uint64_t SHIM_MBUF_L4_MASK = RTE_MBUF_F_RX_L4_CKSUM_MASK;
static const uint64_t SHIM_MBUF_IPV4 = RTE_MBUF_F_TX_IPV4;
static const uint64_t SHIM_MBUF_IPV4_CHECKSUM = RTE_MBUF_F_TX_IP_CKSUM;
static const uint64_t SHIM_MBUF_IPV6 = RTE_MBUF_F_TX_IPV6;
static const uint64_t SHIM_MBUF_TCP_CHECKSUM = RTE_MBUF_F_TX_TCP_CKSUM;
static const uint64_t SHIM_MBUF_UDP_CHECKSUM = RTE_MBUF_F_TX_UDP_CKSUM;
static const uint64_t SHIM_MBUF_TCP_SEGMENT = RTE_MBUF_F_TX_TCP_SEG;
static const uint64_t SHIM_MBUF_UDP_SEGMENT = RTE_MBUF_F_TX_UDP_SEG;

/* Fills in a device's configuration. */
void shim_eth_conf(struct rte_eth_conf *conf, uint64_t rx_offloads, uint64_t tx_offloads, uint64_t rss);
/* Whether the link is up; speed in Mbit/s, 0 if unknown. */
int shim_link_is_up(uint16_t port, uint32_t *speed);

uint64_t shim_rdtsc(void);
