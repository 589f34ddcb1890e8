#include "shim.h"

#include <string.h>

int shim_errno(void) { return rte_errno; }

uint16_t shim_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t max)
{
	return rte_eth_rx_burst(port, queue, packets, max);
}

uint16_t shim_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, packets, count);
}

uint16_t shim_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count)
{
	return rte_eth_tx_prepare(port, queue, packets, count);
}

struct rte_mbuf *shim_mbuf_alloc(struct rte_mempool *pool) { return rte_pktmbuf_alloc(pool); }
void shim_mbuf_free(struct rte_mbuf *packet) { rte_pktmbuf_free(packet); }
void shim_mbuf_free_bulk(struct rte_mbuf **packets, unsigned int count)
{
	rte_pktmbuf_free_bulk(packets, count);
}
int shim_mbuf_chain(struct rte_mbuf *head, struct rte_mbuf *tail)
{
	return rte_pktmbuf_chain(head, tail);
}

void shim_mbuf_tx_offload(struct rte_mbuf *packet, uint64_t flags, uint8_t l2, uint16_t l3, uint8_t l4,
                          uint16_t segment)
{
	packet->ol_flags = flags;
	packet->l2_len = l2;
	packet->l3_len = l3;
	packet->l4_len = l4;
	packet->tso_segsz = segment;
}

void shim_eth_conf(struct rte_eth_conf *conf, uint64_t rx_offloads, uint64_t tx_offloads, uint64_t rss)
{
	memset(conf, 0, sizeof(*conf));
	conf->rxmode.offloads = rx_offloads;
	conf->txmode.offloads = tx_offloads;
	if (rss != 0) {
		conf->rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
		conf->rx_adv_conf.rss_conf.rss_hf = rss;
	}
}

int shim_link_is_up(uint16_t port, uint32_t *speed)
{
	struct rte_eth_link link;
	memset(&link, 0, sizeof(link));
	if (rte_eth_link_get_nowait(port, &link) != 0)
		return -1;
	*speed = link.link_speed == RTE_ETH_SPEED_NUM_UNKNOWN ? 0 : link.link_speed;
	return link.link_status == RTE_ETH_LINK_UP;
}

uint64_t shim_rdtsc(void) { return rte_rdtsc(); }
